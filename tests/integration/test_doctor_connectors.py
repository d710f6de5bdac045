"""What `agentflow doctor` says of ports, object stores and extras that the connectors of a job need."""

from __future__ import annotations

import socket

import pytest

from agentflow.cli.doctor import file_checks, python_checks
from tests.doctor_world import JOB, Project, results
from tests.own_broker import free_ports


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def test_port_of_an_http_source_that_is_taken_is_a_warning(project):
    free = free_ports(1)
    http = project.path / "http.yaml"
    http.write_text(JOB.replace("{jsonl: {path: in.jsonl}}", f"{{http: {{port: {free}}}}}"))
    assert results(file_checks.input_files(project.subject(job="http.yaml"))) == ["ok"]
    with socket.create_server(("127.0.0.1", free)):
        (finding,) = file_checks.input_files(project.subject(job="http.yaml"))
    assert (finding.result, finding.found.startswith(f"127.0.0.1:{free} cannot be listened on")) == ("warning", True)


def test_objects_are_listed_and_a_bucket_that_is_not_there_is_an_error(project, s3):
    url, store = s3.new_bucket(), f"{{endpoint: {s3.endpoint}, access-key-id: test, secret-access-key: test}}"
    s3.store(url).put("in/1.jsonl", [b'{"product": "p", "stars": 3}\n'])
    text = JOB.replace("in.jsonl", f"{url}/in/*.jsonl").replace("out/", f"{url}/out")
    (project.path / "s3.yaml").write_text(f"{text}object-store: {store}\n")
    subject = project.subject(job="s3.yaml")
    assert results(file_checks.input_files(subject)) == ["ok"]
    assert results(file_checks.sink(subject)) == ["ok"]
    subject = project.subject("sink.jsonl.path=s3://no-such-bucket/out", job="s3.yaml")
    (finding,) = file_checks.sink(subject)
    assert (finding.result, finding.found.startswith("s3://no-such-bucket/out: ")) == ("error", True)


def test_extras_are_those_of_the_kinds_paths_and_options_of_the_job(project):
    def needed(*settings: str) -> list[str]:
        return python_checks.extras_of(project.subject(*settings))

    assert needed() == []
    assert needed("source.jsonl.follow=true") == ["follow"]
    assert needed("source.jsonl.follow=true", "source.jsonl.poll-interval=1s") == []
    assert needed("source.jsonl.path=s3://b/in", "sink.jsonl.path=s3://b/out") == ["object-store"]
    assert needed("savepoint.dir=gs://b/savepoints") == ["object-store"]
    (project.path / "job.yaml").write_text(JOB.replace("sink: {jsonl:", "sink: {parquet:"))
    assert needed() == ["arrow"]
