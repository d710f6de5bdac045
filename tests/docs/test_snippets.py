"""README and docs are executed: Python snippets run, job files validate, make targets exist."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from tests.kafka_topics import Topics
from tests.own_broker import free_ports
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


PYTEST_INI = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""  # of a project that tests its connectors


def snippets(language: str) -> list[tuple[str, str]]:
    """Return (place, text) of every fenced block of a language."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{document.name}:{line}", match[1]))
    return found


def run(command: list[str], directory: Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=directory, env=env, input=given, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("place", "text"), snippets("python"), ids=[place for place, _ in snippets("python")])
def test_python_snippet_runs(place: str, text: str, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(text)
    command = [sys.executable, "-W", "error", str(script)]
    if re.search(r"^(class Test|(async )?def test_)", text, re.MULTILINE):
        (tmp_path / "pytest.ini").write_text(PYTEST_INI)
        command = [sys.executable, "-m", "pytest", "-q", str(script)]
    done = run(command, tmp_path)
    assert done.returncode == 0, f"{place}\n{done.stdout}{done.stderr}"


def job_files(source: str) -> list[tuple[str, str]]:
    """Return (place, text) of the job files with a kind of source."""
    return [(place, text) for place, text in snippets("yaml") if f"source: {{{source}" in text]


KAFKA_JOB_FILES, HTTP_JOB_FILES = job_files("kafka"), job_files("http")
S3_JOB_FILES = [(place, text) for place, text in snippets("yaml") if "s3://" in text]
FOLLOWED = [(place, text) for place, text in snippets("yaml") if "follow: true" in text]
YAML_AGENTS = [(place, text) for place, text in snippets("yaml") if place.startswith("yaml-agents.md")]
SPECIAL = [*KAFKA_JOB_FILES, *HTTP_JOB_FILES, *S3_JOB_FILES, *FOLLOWED, *YAML_AGENTS]
JOB_FILES = [one for one in snippets("yaml") if one not in SPECIAL]


PARCEL = "Your parcel left on Monday."


def test_snippet_that_names_a_file_is_that_file() -> None:
    named = {
        text.partition("\n")[0]: text.partition("\n")[2]
        for _, text in snippets("python")
        if text.startswith("# examples/")
    }
    assert named, "the guide for connectors shows two"
    assert {name: (ROOT / name.removeprefix("# ")).read_text() for name in named} == named


@pytest.mark.parametrize(("place", "text"), JOB_FILES, ids=[place for place, _ in JOB_FILES])
def test_job_file_runs_to_the_end_of_its_input(place: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = run([sys.executable, "-m", "agentflow", "run", "job.yaml"], tmp_path)
    assert done.returncode == 0, f"{place}\n{done.stderr}"
    assert list((tmp_path / "out").glob("part-*"))


@pytest.mark.parametrize(
    ("name", "expected"), [("support.yaml", PARCEL), ("desk.yaml", "Hello, c-1"), ("job.yaml", PARCEL)]
)
def test_yaml_agent_answers(name: str, expected: str, tmp_path: Path) -> None:
    for _, text in [*YAML_AGENTS, *(one for one in snippets("python") if one[0].startswith("yaml-agents.md"))]:
        first = text.partition("\n")[0]
        if first.startswith("# "):
            (tmp_path / first.removeprefix("# ")).write_text(text)
    record = json.dumps({"key": "c-1", "text": "Where is my parcel?"}) + "\n"
    (tmp_path / "in.jsonl").write_text(record)
    done = run([sys.executable, "-m", "agentflow", "run", name], tmp_path, record)
    assert done.returncode == 0, done.stderr
    written = done.stdout or next((tmp_path / "out").glob("part-*")).read_text()
    assert json.loads(written) == expected


@pytest.mark.parametrize(("place", "text"), HTTP_JOB_FILES, ids=[place for place, _ in HTTP_JOB_FILES])
def test_job_file_takes_what_is_posted(place: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    port = str(free_ports(1))
    command = [sys.executable, "-m", "agentflow", "run", "job.yaml", "--set", f"source.http.port={port}"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        body = (ROOT / "examples" / "data" / "product_reviews.jsonl").read_bytes().split(b"\n")[0]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/records", body)
        deadline, status = time.monotonic() + 30, 0
        while status != 202:
            assert process.poll() is None, place
            assert time.monotonic() < deadline, place
            with contextlib.suppress(ConnectionError, urllib.error.URLError), urllib.request.urlopen(request) as answer:
                status = answer.status
        process.terminate()
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.wait()
    found = "".join(part.read_text() for part in (tmp_path / "out").glob("part-*"))
    assert json.loads(body)["product_id"] in found


def test_the_commands_of_the_page_about_savepoints_run(tmp_path: Path) -> None:
    """In their order, one after the other, behind a run of the page's job; 3 is what a check answers with."""
    (job,) = [text for place, text in snippets("yaml") if place.startswith("savepoints.md")]
    (tmp_path / "job.yaml").write_text(job)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    lines = [line for place, text in snippets("sh") if place.startswith("savepoints.md") for line in text.splitlines()]
    assert len(lines) > 10
    for line in ["agentflow run job.yaml", *lines]:
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode in (0, 3 if "diff" in line else 0), f"{line}\n{done.stderr}"


@pytest.mark.parametrize(("place", "text"), S3_JOB_FILES, ids=[place for place, _ in S3_JOB_FILES])
def test_job_file_runs_from_and_to_an_object_store(place: str, text: str, tmp_path: Path, s3: S3Server) -> None:
    url = s3.new_bucket()
    (tmp_path / "job.yaml").write_text(text.replace("s3://bucket", url).replace("http://localhost:9000", s3.endpoint))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    s3.store(url).put("reviews/1.jsonl", [(ROOT / "examples/data/product_reviews.jsonl").read_bytes()])
    done = run([sys.executable, "-m", "agentflow", "run", "job.yaml"], tmp_path)
    assert done.returncode == 0, f"{place}\n{done.stderr}"
    assert s3.store(url).find("scores/part-")


@pytest.mark.parametrize(("place", "text"), FOLLOWED, ids=[place for place, _ in FOLLOWED])
def test_job_file_of_followed_files_runs_until_it_is_stopped(place: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    (tmp_path / "logs").mkdir()
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples/data/product_reviews.jsonl", tmp_path / "logs/app.jsonl")
    with subprocess.Popen(
        [sys.executable, "-m", "agentflow", "run", "job.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        try:
            deadline = time.monotonic() + 60
            while not list((tmp_path / "out").glob("part-*")):
                assert job.poll() is None, f"{place}\n{job.communicate()[1]}"
                assert time.monotonic() < deadline, place
            job.terminate()
            assert job.wait(30) == 143
        finally:
            job.kill()


@pytest.mark.kafka
@pytest.mark.parametrize(("place", "text"), KAFKA_JOB_FILES, ids=[place for place, _ in KAFKA_JOB_FILES])
def test_kafka_job_file_is_run_by_a_worker(place: str, text: str, tmp_path: Path, kafka: str) -> None:
    topics, job = Topics(kafka), f"docs{uuid.uuid4().hex[:8]}"
    (tmp_path / "job.yaml").write_text(
        text.replace("reviews", job).replace("review-alerts", f"{job}-out").replace("localhost:9092", kafka)
    )
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    topics.create(f"product-{job}", 2)
    lines = (ROOT / "examples/data/product_reviews.jsonl").read_bytes().splitlines()[:50]
    topics.write(f"product-{job}", [(json.loads(line)["product_id"], line) for line in lines])
    command = [sys.executable, "-m", "agentflow", "worker", "job.yaml"]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as worker:
        try:
            deadline = time.monotonic() + 60
            while len(topics.read(f"{job}-out")) < len(lines):
                assert worker.poll() is None, f"{place}\n{worker.communicate()[1]}"
                assert time.monotonic() < deadline, place
            worker.terminate()
            assert worker.wait(30) == 143
        finally:
            worker.kill()


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [word for _, text in snippets("sh") for word in re.findall(r"^make (\w+)", text, re.MULTILINE)]
    assert named[:2] == ["run", "test"]
    assert set(named) <= targets
