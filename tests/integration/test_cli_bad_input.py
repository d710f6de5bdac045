"""Bad input and broken places, through the command: what is told, the exit status, and that nothing is lost.

Each test repairs the cause and starts the job again: what came before and behind is there, once.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

AGENTS = """\
import msgspec

from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Review(msgspec.Struct):
    k: str
    stars: int


class Count(Agent):
    @action(EventType.InputEvent, input=Review)
    def count(event: InputEvent[Review], ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("count", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent([ctx.key, count, event.input.stars]))
"""

JOB = """\
job: reviews
agent: agents:Count
key-by: k
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state: {dir: state/}
restart: {strategy: none}
"""
DEAD = ("--set", "dead-letter.jsonl.path=dead/")
GOOD = [b'{"k": "a", "stars": 5}', b'{"k": "b", "stars": 1}', b'{"k": "a", "stars": 3}']
ALL_OUTPUTS = [["a", 1, 5], ["b", 1, 1], ["a", 2, 3]]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "agents.py").write_text(AGENTS)
    (tmp_path / "job.yaml").write_text(JOB)
    write(tmp_path, *GOOD)
    return tmp_path


def write(project, *lines):
    (project / "in.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def run(project, *arguments, status, told=(), limit=None):
    """Run the job; check its status and that each text is told, without a traceback of the engine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFLOW_")}
    done = subprocess.run(
        [sys.executable, "-m", "agentflow", "run", "job.yaml", *arguments],
        cwd=project,
        env=kept | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=limit,
    )
    assert done.returncode == status, done.stderr
    for text in told:
        assert text in done.stderr, done.stderr
    if status:
        assert "agentflow/runtime" not in done.stderr
    return done


def outputs(project, folder="out"):
    files = sorted((project / folder).glob("[!._]*"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


BAD_RECORDS = pytest.mark.parametrize(
    ("bad", "error", "told"),
    [
        pytest.param(b'{"k": "a", "stars": ', "DecodeError", "the value cannot be decoded", id="broken JSON"),
        pytest.param(b"\xff\xfe", "DecodeError", "the value cannot be decoded", id="no text"),
        pytest.param(b'{"stars": 5}', "MissingKey", "the record has no field 'k'", id="missing key"),
        pytest.param(b'{"k": ["a"], "stars": 5}', "MissingKey", "a list in 'k'", id="key that is no scalar"),
        pytest.param(
            b'{"k": "a", "stars": "five"}', "DecodeError", "Expected `int`, got `str` - at `$.stars`", id="wrong type"
        ),
        pytest.param(b'{"k": "a"}', "DecodeError", "missing required field `stars`", id="missing field"),
    ],
)


@BAD_RECORDS
def test_bad_record_stops_the_job_with_its_place_and_the_job_goes_on_when_it_is_mended(project, bad, error, told):
    write(project, GOOD[0], bad, *GOOD[1:])
    position = len(GOOD[0]) + 1
    run(project, status=1, told=[f"{error}: ", told, f"in.jsonl/{position}  line 2\n", "help: configure dead-letter"])
    assert outputs(project) in ([], ALL_OUTPUTS[:1])
    write(project, GOOD[0], b" " * len(bad), *GOOD[1:])
    run(project, status=0)
    assert outputs(project) == ALL_OUTPUTS


@BAD_RECORDS
def test_bad_record_becomes_a_dead_letter_and_the_job_goes_on(project, bad, error, told):
    write(project, GOOD[0], bad, *GOOD[1:])
    run(project, *DEAD, status=0, told=["dead letter", f"in.jsonl/{len(GOOD[0]) + 1}"])
    assert outputs(project) == ALL_OUTPUTS
    (letter,) = outputs(project, "dead")
    assert (letter["error-type"], letter["source-position"]) == (error, f"in.jsonl/{len(GOOD[0]) + 1}")
    assert told in letter["error-message"]
    kept = letter.get("value-text") or letter.get("value-base64") or letter["value"]
    assert kept == {b"\xff\xfe": "//4="}.get(bad) or kept == bad.decode(errors="replace") or kept == json.loads(bad)


def test_line_of_50_mb_is_refused_without_being_held_in_memory(project):
    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (400 * 2**20,) * 2)

    with (project / "in.jsonl").open("wb") as file:
        file.write(GOOD[0] + b'\n{"k": "a", "text": "')
        for _ in range(50):
            file.write(b"x" * 10**6)
        file.write(b'"}\n' + b"\n".join(GOOD[1:]) + b"\n")
    position = len(GOOD[0]) + 1
    size = ("--set", "record-max=1MiB")
    told = ["RecordTooLarge", "more than 1,048,576 bytes", f"in.jsonl/{position}"]
    run(project, *size, status=1, told=told, limit=limit)
    run(project, *size, *DEAD, status=0, told=["dead letter"], limit=limit)
    assert outputs(project) == ALL_OUTPUTS
    (letter,) = outputs(project, "dead")
    assert (letter["error-type"], letter["source-position"]) == ("RecordTooLarge", f"in.jsonl/{position}")


def test_record_max_holds_for_standard_input_too(project):
    arguments = ["--set", "source=stdin", "--set", "guarantee=none", "--set", "state.dir=null", *DEAD]
    done = subprocess.run(
        [sys.executable, "-m", "agentflow", "run", "job.yaml", *arguments, "--set", "record-max=1KiB"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=GOOD[0] + b"\n" + b"x" * 5_000 + b"\n" + GOOD[1] + b"\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert outputs(project) == ALL_OUTPUTS[:2]
    assert [letter["error-type"] for letter in outputs(project, "dead")] == ["RecordTooLarge"]


def test_input_that_is_missing_is_named(project):
    (project / "in.jsonl").rename(project / "elsewhere")
    run(project, status=1, told=["error: the input file does not exist", "file in.jsonl", "help: Correct `path`"])
    (project / "elsewhere").rename(project / "in.jsonl")
    run(project, status=0)
    assert outputs(project) == ALL_OUTPUTS


def test_input_that_disappears_while_it_is_read_stops_the_job_and_is_read_on_when_it_is_back(project):
    (project / "agents.py").write_text(
        AGENTS.replace(
            "        count =", "        from pathlib import Path\n\n        hide(Path('in.jsonl'))\n        count ="
        )
        + "\n\ndef hide(path):\n    if path.exists():\n        path.rename('elsewhere')\n"
    )
    write(project, *GOOD * 30_000)  # several blocks
    told = ["error: the input file disappeared while it was read", "file in.jsonl", "help: Put the original file back"]
    run(project, status=1, told=told)
    (project / "elsewhere").rename(project / "in.jsonl")
    (project / "agents.py").write_text(AGENTS)
    run(project, status=0)
    assert len(outputs(project)) == 90_000
    assert outputs(project)[-1] == ["a", 60_000, 3]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "shorter than its position"),
        (b'{"k": "other file", "stars": 1, "x": "' + b"y" * 99 + b'"}\n', "has changed"),
    ],
)
def test_input_that_was_cut_or_replaced_behind_its_position_is_told(project, content, told):
    run(project, status=0)
    original = (project / "in.jsonl").read_bytes()
    (project / "in.jsonl").write_bytes(content)
    run(
        project, status=1, told=[told, "file in.jsonl", f"position {len(original)}", "help: Put the original file back"]
    )
    (project / "in.jsonl").write_bytes(original + GOOD[1] + b"\n")
    run(project, status=0)
    assert outputs(project) == [*ALL_OUTPUTS, ["b", 2, 1]]


@pytest.fixture
def small_disk(project):
    """A file system of 24 MiB."""
    disk = project / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here (root is needed): a full disk was not tried")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:  # a buffer would try once more at the end
        try:
            while True:
                file.write(b"0" * 2**16)
        except OSError:
            pass
    return disk / "filler"


def test_full_disk_of_the_state_is_told_and_the_job_goes_on_when_there_is_room(project, small_disk):
    place = ("--set", f"state.dir={small_disk}/state", "--set", "state.free-min=1MiB")
    run(project, *place, status=0)
    write(project, *GOOD, *GOOD)
    filler = fill(small_disk)
    told = ["not enough free space", f"directory {small_disk}/state", "help: free space or enlarge the disk"]
    run(project, *place, status=1, told=told)
    filler.unlink()
    run(project, *place, status=0)
    assert outputs(project) == [*ALL_OUTPUTS, ["a", 3, 5], ["b", 2, 1], ["a", 4, 3]]


def test_full_disk_of_the_output_is_told_and_the_job_goes_on_when_there_is_room(project, small_disk):
    place = ("--set", f"sink.jsonl.path={small_disk}/out")
    (small_disk / "out").mkdir()
    filler = fill(small_disk)
    told = [
        "the output directory cannot be written: No space left on device",
        f"directory {small_disk}/out",
        "help: Free",
    ]
    run(project, *place, status=1, told=told)
    assert outputs(small_disk) == []
    filler.unlink()
    run(project, *place, status=0)
    assert outputs(small_disk) == ALL_OUTPUTS


def test_state_of_a_newer_version_is_refused_and_left_alone(project):
    run(project, status=0)
    described = project / "state" / "0" / "agentflow.json"
    described = described if described.exists() else next(project.glob("state/**/agentflow.json"))
    original = described.read_bytes()
    described.write_bytes(json.dumps(json.loads(original) | {"format": 99, "created_by": "agentflow 9.0"}).encode())
    run(
        project,
        status=1,
        told=["format 99, written by agentflow 9.0", "expected: format 1 or older", "help: run the newer"],
    )
    described.write_bytes(original)
    run(project, status=0)
    assert outputs(project) == ALL_OUTPUTS


def test_unknown_configuration_key_is_marked_with_the_nearest_one(project):
    (project / "job.yaml").write_text(JOB + "checkpoint: {intervall: 1s}\n")
    done = run(project, status=2)
    assert done.stderr == (
        "error: job.yaml:8: unknown key 'checkpoint.intervall'\n"
        "  8 | checkpoint: {intervall: 1s}\n"
        "                   ^^^^^^^^^ did you mean 'interval'?\n"
        "help: agentflow schema --describe checkpoint\n"
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("checkpoint: {interval: fast}", "^^^^"),
        ("record-max: 12 parsecs", "is not a size"),
        ("restart.strategy: always", "unknown"),
    ],
)
def test_bad_value_is_marked(project, line, told):
    (project / "job.yaml").write_text(JOB.replace("restart: {strategy: none}\n", "") + line + "\n")
    run(project, status=2, told=["error: job.yaml:7: ", f"  7 | {line}", told])


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        ("nowhere:Count", ["module 'nowhere'", "job.yaml:2"]),
        ("agents:Cuont", ["'Cuont'", "job.yaml:2", "Count"]),
        ("agents:Review", ["job.yaml:2", "Agent"]),
        ("broken:Count", ["broken.py", "line 3", "ZeroDivisionError"]),
    ],
)
def test_agent_that_cannot_be_had_is_told(project, agent, told):
    (project / "broken.py").write_text("from agentflow import Agent\n\nx = 1 / 0\n")
    (project / "job.yaml").write_text(JOB.replace("agents:Count", agent))
    run(project, status=2, told=told)


def test_second_job_on_one_state_directory_is_refused(project):
    (project / "agents.py").write_text(AGENTS + WAITING)
    with running(project):
        run(project, status=1, told=["the state directory is in use", "owner process", "help: stop the other process"])


def test_second_job_on_one_output_directory_is_refused(project):
    (project / "agents.py").write_text(AGENTS + WAITING)
    with running(project):
        told = ["another job writes into the output directory", "directory out/", "help: Stop the other job"]
        run(project, "--set", "state.dir=other/", status=1, told=told)


WAITING = """

class Waiting(Agent):
    @action(EventType.InputEvent)
    async def wait(event: InputEvent, ctx: RunnerContext) -> None:
        import asyncio

        print("waiting", flush=True)
        await asyncio.Event().wait()
"""


class running:  # noqa: N801 (reads as a statement)
    def __init__(self, project):
        command = [sys.executable, "-m", "agentflow", "run", "job.yaml", "--set", "agent=agents:Waiting"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        assert self.process.stdout.readline() == b"waiting\n"

    def __exit__(self, *_):
        self.process.kill()
        self.process.stdout.close()
        self.process.wait()


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("state.dir", "opening the state: "),
        ("sink.jsonl.path", "the output directory cannot be written: "),
    ],
)
def test_place_that_is_a_file_stops_the_job_at_once(project, key, told):
    (project / "file").write_text("")
    restart = ("--set", "restart={strategy: fixed-delay, delay: 1s, attempts: 100}")
    run(project, "--set", f"{key}=file", *restart, status=1, told=[told, "directory file"])


def test_reader_of_the_output_that_goes_away_ends_the_job_quietly(project):
    write(project, *GOOD * 20_000)
    arguments = "--set sink=stdout --set guarantee=at-least-once --set checkpoint.interval=5ms"
    command = f"{sys.executable} -m agentflow run job.yaml {arguments} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    first, status = done.stdout.splitlines()
    assert (json.loads(first), status) == (["a", 1, 5], "1")
    assert "error: standard output cannot be written: " in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "job restarts" not in done.stderr


def test_staging_and_hidden_files_are_no_input(project):
    (project / "parts").mkdir()
    for name in ("a.jsonl", "_b.jsonl", ".c.jsonl"):
        (project / "parts" / name).write_bytes(GOOD[0] + b"\n")
    run(project, "--set", "source.jsonl.path=parts/*.jsonl", status=0)
    assert outputs(project) == [["a", 1, 5]]


def test_name_of_an_input_that_is_no_text_is_refused(project):
    (project / "parts").mkdir()
    (project / "in.jsonl").rename(project / "parts" / os.fsdecode(b"\xff.jsonl"))
    told = ["error: the name of the input file is no UTF-8", r"b'parts/\xff.jsonl'", "help: Rename the file."]
    run(project, "--set", "source.jsonl.path=parts/*.jsonl", status=1, told=told)
