"""Every check of `agentflow doctor` in a good and a bad world, with real directories, locks, limits, ports and processes."""

from __future__ import annotations

import errno
import http.server
import json
import os
import resource
import shutil
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest

from agentflow.cli.doctor import (
    clock_checks,
    file_checks,
    job_checks,
    network_checks,
    places,
    python_checks,
    state_checks,
)
from agentflow.observability.admin import AdminServer
from agentflow.state.directory import FORMAT_FILE, LOCK_FILE
from tests.doctor_world import NOBODY, Project, as_nobody, locked_by_a_process, results


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture
def open_project(monkeypatch):
    """A project that nobody gets as far as: pytest keeps its own directories closed."""
    with tempfile.TemporaryDirectory(prefix="agentflow-test-") as place:
        path = Path(place).resolve()
        path.chmod(0o755)
        monkeypatch.chdir(path)
        yield Project(path)
        monkeypatch.undo()


# -- state
def test_a_directory_that_is_still_to_be_made_is_well(project):
    (finding,) = state_checks.directory(project.subject())
    assert (finding.result, finding.found) == ("ok", f"state will be created in {project.path}")
    assert not (project.path / "state").exists()


def test_a_directory_that_this_user_may_not_write_is_an_error(open_project):
    (open_project.path / "state").mkdir(mode=0o500)
    with as_nobody():
        (finding,) = state_checks.directory(open_project.subject())
        (other,) = state_checks.directory(open_project.subject("state.dir=state/deep/down"))
    assert finding.result == other.result == "error"
    assert "may not be written: owner" in finding.found
    assert "mode 0500" in finding.found
    assert "the right to write there" in finding.fix


def test_a_directory_behind_one_that_may_not_be_searched_is_an_error(open_project):
    (open_project.path / "closed").mkdir(mode=0o700)
    (open_project.path / "closed" / "state").mkdir()
    if os.geteuid() != 0:
        (open_project.path / "closed").chmod(0)
    with as_nobody():
        (finding,) = state_checks.directory(open_project.subject("state.dir=closed/state"))
    (open_project.path / "closed").chmod(0o700)
    assert (finding.result, f"{open_project.path / 'closed'} may not be written" in finding.found) == ("error", True)


def test_a_file_in_the_place_of_a_directory_is_an_error(project):
    (project.path / "state").write_text("")
    assert "is no directory" in state_checks.directory(project.subject())[0].found
    assert "is no directory" in state_checks.directory(project.subject("state.dir=state/below"))[0].found
    (project.path / "out").write_text("")
    assert "is no directory" in file_checks.sink(project.subject())[0].found


def test_a_directory_that_everybody_may_write_is_a_warning(project):
    (project.path / "state").mkdir()
    (project.path / "state").chmod(0o777)
    (finding,) = state_checks.directory(project.subject())
    assert (finding.result, finding.fix) == ("warning", "chmod o-w state")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_directory_of_somebody_else_is_a_note(project):
    (project.path / "state").mkdir()
    os.chown(project.path / "state", NOBODY, NOBODY)
    (finding,) = state_checks.directory(project.subject())
    assert (finding.result, f"({NOBODY})" in finding.found) == ("note", True)


def test_a_lock_that_a_live_process_holds_names_it_and_one_of_a_dead_process_is_free(project):
    lock = project.path / "state" / "subtask-0" / LOCK_FILE
    with locked_by_a_process(lock) as process:
        (embedded,) = state_checks.owner(project.subject())
        (kafka,) = state_checks.owner(project.subject(job="kafka.yaml"))
    assert (embedded.result, kafka.result) == ("warning", "note")
    assert f"process {process.pid} (" in embedded.found
    assert "subtask-0" in embedded.found
    (finding,) = state_checks.owner(project.subject())
    assert (finding.result, finding.found) == ("ok", "nobody has it open")


def test_state_of_this_job_is_told_with_its_checkpoint_and_left_as_it_was(project):
    project.run()
    before = {path: path.read_bytes() for path in (project.path / "state").rglob("*") if path.is_file()}
    (finding,) = state_checks.contents(project.subject())
    assert (finding.result, finding.found) == ("ok", "job 'reviews': subtask-0 at checkpoint 1")
    assert before == {path: path.read_bytes() for path in (project.path / "state").rglob("*") if path.is_file()}


def test_state_of_another_job_of_a_newer_version_or_with_damage_is_an_error(project):
    project.run()
    (other,) = state_checks.contents(project.subject("job=orders"))
    assert (other.result, "belongs to another job" in other.found) == ("error", True)
    assert "name it 'reviews' again" in other.fix
    file = project.path / "state" / "subtask-0" / FORMAT_FILE
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps(content | {"format": 99}))
    (newer,) = state_checks.contents(project.subject())
    assert (newer.result, "has format 99" in newer.found) == ("error", True)
    file.write_text("{")
    (damaged,) = state_checks.contents(project.subject())
    assert (damaged.result, "cannot be read" in damaged.found) == ("error", True)
    file.unlink()
    (lost,) = state_checks.contents(project.subject())
    assert (lost.result, f"{FORMAT_FILE} is missing" in lost.found) == ("error", True)


def test_too_little_free_space_is_an_error_and_none_to_spare_a_warning(project):
    assert results(state_checks.free_space(project.subject())) == ["ok"]
    (full,) = state_checks.free_space(project.subject("state.free-min=1000000GiB"))
    assert (full.result, "state.free-min" in full.expected) == ("error", True)
    (project.path / "state").mkdir()
    with (project.path / "state" / "sparse").open("wb") as file:
        file.truncate(2**34)  # takes no space, and counts as so much
    least = places.free_bytes(project.path) - 2**33
    (finding,) = state_checks.free_space(project.subject(f"state.free-min={least}B"))
    assert (finding.result, "16.0 GiB" in finding.found) == ("warning", True)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no tmpfs at /dev/shm")
def test_state_in_memory_of_the_machine_is_a_warning(project):
    place = Path("/dev/shm") / f"agentflow-{uuid.uuid4().hex}"
    place.mkdir()
    try:
        (finding,) = state_checks.disk(project.subject(f"state.dir={place}"))
        assert list(place.iterdir()) == []
    finally:
        shutil.rmtree(place)
    assert finding.result == "warning"
    assert finding.found.startswith("tmpfs, mounted at /dev/shm: it is memory")


@pytest.mark.parametrize(
    ("line", "kind", "is_told"),
    [
        ("36 35 0:99 / {path} rw shared:1 - nfs4 server:/x rw", "nfs4", True),
        ("36 35 0:99 / {path} rw - overlay overlay rw,lowerdir=/x", "overlay", True),
        ("36 35 0:99 / {path} rw master:1 - fuse.sshfs me@there: rw", "fuse.sshfs", True),
        ("36 35 0:99 / {path} rw - cifs //server/x rw", "cifs", True),
        ("36 35 0:99 / {path} rw - xfs /dev/vdb rw", "xfs", False),
    ],
)
def test_a_disk_that_keeps_no_promises_is_a_warning_with_its_reason(project, monkeypatch, line, kind, is_told):
    place = project.path / "a place"
    place.mkdir()
    mounts = project.path / "mountinfo"
    escaped = str(place).replace(" ", "\\040")
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/vda rw\n{line.format(path=escaped)}\n")
    monkeypatch.setattr(places, "_MOUNTS", mounts)
    (finding,) = state_checks.disk(project.subject(f"state.dir={place / 'state'}"))
    assert (finding.result == "warning") is is_told
    assert finding.found.startswith(f"{kind}, mounted at {place}")
    assert places.file_system(project.path).kind == "ext4"


def test_a_system_that_does_not_tell_its_mounts_is_skipped(project, monkeypatch):
    monkeypatch.setattr(places, "_MOUNTS", project.path / "none")
    assert results(state_checks.disk(project.subject())) == ["skipped"]


def test_syncs_are_measured_and_leave_nothing_behind(project, monkeypatch):
    (project.path / "state").mkdir()
    (finding,) = state_checks.sync_speed(project.subject())
    assert "of 50 syncs" in finding.found or "p50" in finding.found
    assert list((project.path / "state").iterdir()) == []
    monkeypatch.setattr(state_checks, "_SLOW_SYNC_S", 0.0)
    (slow,) = state_checks.sync_speed(project.subject())
    assert (slow.result, "faster disk" in slow.fix) == ("warning", True)


def test_syncs_are_measured_where_files_without_names_are_not_to_be_had(project, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE")
    assert len(places.sync_times(project.path, 3, 5.0)) == 3
    assert not list(project.path.glob(".agentflow-doctor*"))


def test_a_limit_of_open_files_below_what_rocksdb_may_have_is_a_warning(project):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
        (finding,) = state_checks.open_files(project.subject())
        resource.setrlimit(resource.RLIMIT_NOFILE, (640, before[1]))
        assert results(state_checks.open_files(project.subject())) == ["ok"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (finding.result, finding.found) == ("warning", "400 open files are allowed")
    assert finding.fix == "ulimit -n 640"


# -- files
def test_input_that_can_be_read_is_well_and_read_on_where_the_state_is(project):
    assert results(file_checks.input_files(project.subject())) == ["ok"]
    project.run()
    (finding,) = file_checks.input_files(project.subject())
    assert (finding.result, "1 of them read before" in finding.found) == ("ok", True)


def test_input_that_is_missing_unreadable_or_shorter_than_it_was_is_told(project):
    doctor = project.agentflow("doctor", "job.yaml", "--json", "--set", "source.jsonl.path=none.jsonl")
    assert by_name(doctor)["input"][0]["found"] == "the input file does not exist\nfile none.jsonl"
    project.run()
    (project.path / "in.jsonl").write_text("{}\n")
    (finding,) = by_name(project.agentflow("doctor", "job.yaml", "--json"))["input"]
    assert (finding["result"], "shorter than its position" in finding["found"]) == ("error", True)


def test_outputs_of_nobody_knows_whom_are_an_error_and_ones_of_the_job_are_not(project):
    assert results(file_checks.sink(project.subject())) == ["ok"]
    project.run()
    assert results(file_checks.sink(project.subject())) == ["ok"]
    shutil.rmtree(project.path / "state")
    (finding,) = file_checks.sink(project.subject())
    assert (finding.result, "the job has no state yet" in finding.found) == ("error", True)
    assert "part-00000-0000000001.jsonl" in finding.found


def test_outputs_that_somebody_writes_just_now_are_a_warning(project):
    with locked_by_a_process(project.path / "out" / ".lock-00000"):
        (finding,) = file_checks.sink(project.subject())
    assert (finding.result, "a job that runs writes there" in finding.found) == ("warning", True)
    assert results(file_checks.sink(project.subject())) == ["ok"]


def test_outputs_that_may_not_be_written_are_an_error(open_project):
    (open_project.path / "dead").mkdir(mode=0o500)
    with as_nobody():
        (finding,) = file_checks.dead_letters(open_project.subject())
    assert (finding.result, "may not be written" in finding.found) == ("error", True)


def test_a_job_without_dead_letters_is_noted(project):
    text = (project.path / "job.yaml").read_text().replace("dead-letter: {jsonl: {path: dead/}}\n", "")
    (project.path / "job.yaml").write_text(text)
    assert results(file_checks.dead_letters(project.subject())) == ["note"]


# -- job
def test_references_lead_somewhere_or_are_told_one_by_one(project):
    (project.path / "secret").write_text("s3cret\n")
    (project.path / "secret").chmod(0o600)
    extra = (
        'kafka.security: {protocol: sasl-ssl, mechanism: PLAIN, username: "${env:WHO}", password: "${file:secret}"}\n'
        'log.level: "${env:LEVEL:-info}"\n'
    )
    (project.path / "job.yaml").write_text((project.path / "job.yaml").read_text() + extra)
    found = job_checks.secrets(project.subject(WHO="alice"))
    assert results(found) == ["note", "ok"]
    assert found[0].found == "log.level: the variable LEVEL is not set, its default counts"
    assert found[1].found == "3 references, all of them lead somewhere"
    (project.path / "secret").chmod(0o644)
    opened = job_checks.secrets(project.subject(WHO="alice", LEVEL="debug"))
    assert results(opened) == ["warning", "ok"]
    assert "can be read by every user of this machine (mode 0644)" in opened[0].found
    assert "chmod 600 secret" in opened[0].fix
    (project.path / "secret").unlink()
    lost = job_checks.secrets(project.subject())
    assert results(lost) == ["error", "error", "note"]
    assert [finding.found.partition(":")[0] for finding in lost[:2]] == [
        "kafka.security.username",
        "kafka.security.password",
    ]
    assert "s3cret" not in repr([*found, *opened, *lost])


@pytest.mark.parametrize(
    ("line", "settings", "where"),
    [
        ("kafka.security.password: hunter2\n", (), "job.yaml:8"),
        ('kafka.security.password: "${env:PASSWORD:-hunter2}"\n', (), "job.yaml:8, as a default"),
        ("", ("kafka.security.password=hunter2",), "a flag"),
    ],
)
def test_a_secret_that_is_written_out_is_a_warning_without_it(project, line, settings, where):
    (project.path / "job.yaml").write_text((project.path / "job.yaml").read_text() + line)
    found = job_checks.secrets(project.subject(*settings))
    told = [finding for finding in found if finding.result == "warning"]
    assert [finding.found for finding in told] == [f"kafka.security.password is written out in {where}"]
    assert "hunter2" not in repr(found)


def test_a_secret_from_the_environment_is_well(project):
    found = job_checks.secrets(project.subject(AGENTFLOW_KAFKA_SECURITY_PASSWORD="hunter2"))
    assert results(found) == ["skipped"]


def test_an_agent_that_cannot_be_used_is_told_as_validate_tells_it(project):
    (project.path / "broken.py").write_text("import nothing_of_that_name\n")
    (project.path / "wrong.py").write_text(
        "from agentflow import Agent, EventType, action\n\n\nclass Twice(Agent):\n"
        "    @action(EventType.InputEvent, timeout='soon', on_error='skipp')\n    async def act(event, ctx):\n        pass\n"
    )
    missing = project.agentflow("doctor", "job.yaml", "--json", "--set", "agent=broken:Agent")
    (finding,) = by_name(missing)["agent"]
    assert missing.returncode == 3
    assert "imports 'nothing_of_that_name', which is not there" in finding["found"]
    (project.path / "agents.py").write_text("print('imported')\n" + (project.path / "agents.py").read_text())
    assert by_name(project.agentflow("doctor", "job.yaml", "--json"))["agent"][0]["result"] == "ok"
    twice = project.agentflow("doctor", "job.yaml", "--json", "--set", "agent=wrong:Twice")
    assert len(by_name(twice)["agent"]) == 2
    validated = project.agentflow("validate", "job.yaml", "--set", "agent=wrong:Twice")
    for row in by_name(twice)["agent"]:
        assert row["found"] in validated.stderr
    assert by_name(twice)["resources"][0]["found"] == "'agent' has to be well first"


def test_unfinished_runs_that_would_diverge_are_told_with_their_run(project):
    steps = (
        "from agentflow import Agent, EventType, InputEvent, action\n\n\ndef {name}(x):\n    return x\n\n\n"
        "class Steps(Agent):\n    @action(EventType.InputEvent)\n    async def go(event, ctx):\n"
        "        await ctx.durable_execute_async({name}, 1)\n        await ctx.wait_for('never')\n"
    )
    (project.path / "steps.py").write_text(steps.format(name="first"))
    agent = ("--set", "agent=steps:Steps")
    parked = project.agentflow("verify", "job.yaml", *agent)
    assert "waiting" in parked.stdout, parked.stdout + parked.stderr
    run_until_waiting(project, *agent)
    assert by_name(project.agentflow("doctor", "job.yaml", "--json", *agent))["unfinished runs"][0]["result"] == "ok"
    (project.path / "steps.py").write_text(steps.format(name="second"))
    doctor = project.agentflow("doctor", "job.yaml", "--json", *agent)
    (finding,) = by_name(doctor)["unfinished runs"]
    assert (doctor.returncode, finding["result"]) == (3, "error")
    assert "2 would diverge" in finding["found"]
    assert "in.jsonl/0" in finding["found"]
    accepted = project.agentflow("doctor", "job.yaml", "--json", *agent, "--set", "run.accept-changes=true")
    assert by_name(accepted)["unfinished runs"][0]["result"] == "warning"


def run_until_waiting(project, *arguments):
    """Run the job until its runs wait for a signal, and stop it."""
    import signal
    import subprocess
    import sys

    from tests.doctor_world import ROOT

    command = [sys.executable, "-m", "agentflow", "run", "job.yaml", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=project.path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while json.loads(project.agentflow("inbox", "job.yaml", "--json", *arguments).stdout or "[]") == []:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143


# -- Python
def test_this_python_its_packages_and_its_loop_are_well(project):
    subject = project.subject()
    for check in (python_checks.python, python_checks.libraries, python_checks.event_loop, python_checks.extras):
        assert results(check(subject)) == ["ok"]
    assert "rocksdict 0.3.29" in python_checks.libraries(subject)[0].found
    (kafka,) = python_checks.extras(project.subject(job="kafka.yaml"))
    assert (kafka.result, kafka.found.startswith("kafka: aiokafka 0.14")) == ("ok", True)


def test_a_missing_extra_is_an_error_with_the_command_that_brings_it_and_its_checks_are_skipped(project):
    doctor = project.agentflow("doctor", "kafka.yaml", "--json", blocked="aiokafka")
    found = by_name(doctor)
    assert doctor.returncode == 3
    assert found["extras"][0]["found"] == "aiokafka is not installed"
    assert found["extras"][0]["fix"] == "pip install 'agentflow[kafka]'"
    assert found["brokers"][0]["found"] == "the extra 'kafka' is not installed"
    embedded = by_name(project.agentflow("doctor", "job.yaml", "--json", blocked="aiokafka"))
    assert embedded["extras"][0]["result"] == "ok"


def test_a_missing_library_and_a_missing_uvloop_are_told(project):
    found = by_name(project.agentflow("doctor", "job.yaml", "--json", blocked="cel"))
    assert found["libraries"][0]["found"] == "common-expression-language is not installed"
    found = by_name(project.agentflow("doctor", "job.yaml", "--json", blocked="uvloop"))
    assert (found["event loop"][0]["result"], found["event loop"][0]["fix"]) == ("warning", "pip install uvloop")


def test_python_without_assertions_is_an_error(project):
    (finding,) = by_name(project.agentflow("doctor", "job.yaml", "--json", flags=["-O"]))["python"]
    assert (finding["result"], "PYTHONOPTIMIZE" in finding["fix"]) == ("error", True)


# -- machine
def test_a_clock_that_was_set_back_behind_the_state_is_a_warning(project):
    assert results(clock_checks.clock(project.subject())) == ["ok"]
    project.run()
    assert results(clock_checks.clock(project.subject())) == ["ok"]
    later = time.time() + 3600
    os.utime(project.path / "state" / "subtask-0" / FORMAT_FILE, (later, later))
    (finding,) = clock_checks.clock(project.subject())
    assert (finding.result, "3600 s later" in finding.found or "3599 s later" in finding.found) == ("warning", True)


def test_another_time_zone_is_noted(project, monkeypatch):
    try:
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        assert results(clock_checks.time_zone(project.subject())) == ["ok"]
        monkeypatch.setenv("TZ", "XYZ-5")
        time.tzset()
        (finding,) = clock_checks.time_zone(project.subject())
        assert (finding.result, finding.found.startswith("XYZ (+0500)")) == ("note", True)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_kernel_is_asked_whether_its_clock_is_kept(project):
    (finding,) = clock_checks.synchronisation(project.subject())
    assert finding.result in ("ok", "note", "skipped", "warning")


def test_a_port_that_is_taken_is_an_error_and_one_of_a_running_job_a_warning(project):
    here = ("admin.host=127.0.0.1",)
    assert results(network_checks.admin_port(project.subject())) == ["skipped"]
    assert results(network_checks.admin_port(project.subject("admin.port=0"))) == ["ok"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (finding,) = network_checks.admin_port(project.subject(*here, f"admin.port={port}"))
    assert finding.result == "error"
    assert finding.found == f"127.0.0.1:{port} cannot be listened on: {os.strerror(errno.EADDRINUSE)}"
    assert results(network_checks.admin_port(project.subject(*here, f"admin.port={port}"))) == ["ok"]
    admin = AdminServer("127.0.0.1", 0, lambda: True, lambda: None, lambda: b"")
    try:
        port = int(admin.address.rpartition(":")[2])
        (running,) = network_checks.admin_port(project.subject(*here, f"admin.port={port}"))
    finally:
        admin.close()
    assert (running.result, "a job of agentflow answers there" in running.found) == ("warning", True)
    (far,) = network_checks.admin_port(project.subject("admin.host=192.0.2.1", "admin.port=9"))
    assert far.result == "error"


class Collector(http.server.BaseHTTPRequestHandler):
    """Answers as its path says; remembers what it was sent."""

    seen: list[tuple[str, bytes, str | None]]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        type(self).seen.append((self.path, body, self.headers.get("x-key")))
        self.send_response(401 if "denied" in self.path else 404 if "wrong" in self.path else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def collector():
    Collector.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


PUSHES = ("tracing.enabled=true", "metrics.otlp=true", "event-log.level=standard", "event-log.target=[otel]")


def test_a_collector_that_takes_an_empty_message_is_well(project, collector):
    assert results(network_checks.telemetry(project.subject())) == ["skipped"]
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20b,other=1"}
    for subject in (
        project.subject(*PUSHES, OTEL_EXPORTER_OTLP_ENDPOINT=collector, **headers),
        project.subject(*PUSHES, f"otlp.endpoint={collector}", OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="elsewhere", **headers),
    ):
        Collector.seen = []
        assert results(network_checks.telemetry(subject)) == ["ok", "ok", "ok"]
        assert Collector.seen == [(f"/v1/{signal}", b"", "a b") for signal in ("traces", "metrics", "logs")]


def test_a_collector_that_refuses_or_has_another_path_is_a_warning(project, collector):
    found = network_checks.telemetry(
        project.subject(
            *PUSHES[:2],
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector}/denied",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{collector}/wrong",
        )
    )
    assert results(found) == ["warning", "warning"]
    assert found[0].fix == "correct OTEL_EXPORTER_OTLP_HEADERS"
    assert "/v1/metrics" in found[1].fix


def test_a_collector_that_is_not_there_or_does_not_answer_is_a_warning_in_time(project, monkeypatch):
    monkeypatch.setattr(network_checks, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        (silent,) = network_checks.telemetry(
            project.subject(*PUSHES[2:], OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"http://127.0.0.1:{port}/x")
        )
    assert "no answer within 0.2 s" in silent.found
    (gone,) = network_checks.telemetry(
        project.subject(*PUSHES[2:], OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="http://127.0.0.1:4317/x")
    )
    assert (gone.result, "4317 is the port of gRPC" in gone.fix) == ("warning", True)
    (nonsense,) = network_checks.telemetry(project.subject(*PUSHES[2:], OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="collector"))
    assert "is no URL" in nonsense.found


# -- brokers that are not there
def by_name(doctor):
    assert doctor.stdout.startswith("["), doctor.stdout + doctor.stderr
    found = {}
    for row in json.loads(doctor.stdout):
        found.setdefault(row["check"], []).append(row)
    return found


def test_brokers_that_are_not_there_do_not_answer_or_speak_something_else_are_told_one_by_one(project):
    with socket.create_server(("127.0.0.1", 0)) as mute, socket.create_server(("127.0.0.1", 0)) as rude:
        thread = threading.Thread(target=hang_up, args=(rude,), daemon=True)
        thread.start()
        ports = [mute.getsockname()[1], rude.getsockname()[1]]
        brokers = f"127.0.0.1:1,127.0.0.1:{ports[0]},127.0.0.1:{ports[1]},no.such.host.invalid:9092"
        began = time.monotonic()
        doctor = project.agentflow("doctor", "kafka.yaml", "--json", "--set", f"kafka.brokers='{brokers}'")
        assert time.monotonic() - began < 30
    found = by_name(doctor)
    texts = [row["found"] for row in found["brokers"]]
    assert doctor.returncode == 3
    assert texts[0] == f"127.0.0.1:1: no connection: {os.strerror(errno.ECONNREFUSED)}"
    assert texts[1] == f"127.0.0.1:{ports[0]}: the connection is accepted, and nothing answers within 4 s"
    assert texts[2].startswith(f"127.0.0.1:{ports[1]}: the connection is accepted, and closed without an answer")
    assert texts[3].startswith("no.such.host.invalid:9092: the name is not known")
    assert all(row["fix"] for row in found["brokers"])
    assert found["topics"][0]["found"] == "'brokers' has to be well first"
    assert found["group"][0]["result"] == "skipped"


def hang_up(server):
    """Accept connections, and close them at once."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.close()


def test_security_settings_that_contradict_each_other_are_told_before_anything_is_asked(project):
    found = by_name(project.agentflow("doctor", "kafka.yaml", "--json", "--set", "kafka.security.protocol=sasl-ssl"))
    assert (found["client"][0]["result"], "mechanism is missing" in found["client"][0]["found"]) == ("error", True)
    assert found["brokers"][0]["found"] == "'client' has to be well first"
