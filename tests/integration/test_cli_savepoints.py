"""`agentflow savepoint …` beside a job that runs, on one that was killed, and on another machine (another directory)."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentflow.cli.main import main
from tests.cli_jobs import running, until

AGENT = """\
from agentflow import Agent, EventType, OutputEvent, action


class Orders(Agent):
    @action(EventType.InputEvent)
    async def order(event, ctx):
        count = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        ctx.short_term_memory.set("last", {"order": event.input["order"], "raw": b"\\xff"})
        if event.input.get("asks"):
            answer = await ctx.wait_for("approval", timeout="1h")
            ctx.send_event(OutputEvent({"order": event.input["order"], "answer": answer}))
        else:
            ctx.send_event(OutputEvent({"order": event.input["order"], "n": count}))
"""
JOB = """\
job: orders
agent: orders:Orders
source: {jsonl: {path: in.jsonl}}
key-by: shop
sink: {jsonl: {path: out/}}
state: {dir: ./state}
checkpoint: {interval: 50ms}
run: {park-after: 100ms}
savepoint: {dir: backups}
"""
INPUTS = [{"shop": f"s{n % 3}", "order": n} for n in range(30)] + [{"shop": "s-ask", "order": 30, "asks": True}]
Command = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orders.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in INPUTS))
    sys.modules.pop("orders", None)
    return tmp_path


@pytest.fixture
def agentflow(place: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str, status: int = 0) -> Any:
        assert main([*arguments, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def text(place: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command and return what it prints, or its errors."""

    def run(*arguments: str, status: int = 0) -> str:
        found = main(list(arguments))
        printed = capsys.readouterr()
        assert found == status, printed
        return printed.err if status in (1, 2) else printed.out

    return run


def outputs(directory: Path) -> list[dict[str, Any]]:
    lines = [line for part in sorted(directory.glob("part-*")) for line in part.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def run_until_it_waits(place: Path) -> None:
    """Run the job until all but the order that asks are done, and kill it."""
    with running(place):
        until(lambda: len(outputs(place / "out")) == len(INPUTS) - 1, place)


def test_a_running_job_is_saved_restored_elsewhere_and_goes_on_there(place: Path, agentflow: Command) -> None:
    with running(place) as job:
        until(lambda: len(outputs(place / "out")) == len(INPUTS) - 1, place)
        savepoint = agentflow("savepoint", "create", "job.yaml")
        assert savepoint["savepoint"].startswith("backups/orders-")
        assert savepoint["kind"] == "embedded"
        second = agentflow("savepoint", "create", "state", "backups")
        assert second["copied"] < second["size"], "what is there is not copied again"
        assert job.poll() is None
        listed = agentflow("savepoint", "list", "job.yaml")
        assert [one["savepoint"] for one in listed] == [savepoint["savepoint"], second["savepoint"]]
        assert agentflow("savepoint", "list", "backups") == listed
    inspected = agentflow("savepoint", "inspect", savepoint["savepoint"])
    assert inspected == savepoint
    (subtask,) = inspected["subtasks"]
    assert subtask["positions"]["in.jsonl"] == (place / "in.jsonl").stat().st_size
    verified = agentflow("savepoint", "verify", savepoint["savepoint"])
    assert verified["damage"] == []
    assert verified["rows"] > 8
    shutil.rmtree(place / savepoint["savepoint"])
    other = ["--set", "state.dir=elsewhere", "--set", "job=moved", "--set", "sink.jsonl.path=out2"]
    restored = agentflow("savepoint", "restore", second["savepoint"], "job.yaml", *other)
    assert (restored["job"], restored["restored-to"], restored["note"]) == ("moved", "elsewhere", None)
    with running(place, *other) as job:
        agentflow("signal", "job.yaml", "s-ask", "approval", '"yes"', "--set", "state.dir=elsewhere")
        assert job.wait(30) == 0, (place / "log").read_text()
    assert outputs(place / "out2") == [{"order": 30, "answer": "yes"}]


def test_a_killed_job_is_saved_without_being_started(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    savepoint = agentflow("savepoint", "create", "job.yaml", "elsewhere/backups")["savepoint"]
    printed = text("savepoint", "restore", savepoint, "new-state", "--name", "copy")
    assert re.match(
        r"job 'copy' \(was 'orders'\) restored to new-state, checkpoint \d+, .* KiB\n  goes on at ", printed
    )
    assert "there is state already" in text("savepoint", "restore", savepoint, "new-state", status=1)
    assert "there is state already" in text("savepoint", "restore", savepoint, "job.yaml", status=1)
    job = ["--set", "state.dir=new-state", "--set", "job=copy"]
    assert [run["key"] for run in agentflow("runs", "list", "job.yaml", *job)] == ["s-ask"]


def test_a_changed_agent_is_told_with_what_it_means(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    savepoint = agentflow("savepoint", "create", "job.yaml")["savepoint"]
    (place / "orders.py").write_text(AGENT.replace("async def order", "async def other"))
    sys.modules.pop("orders", None)
    printed = text("savepoint", "restore", savepoint, "job.yaml", "--set", "state.dir=elsewhere")
    assert "note: the agent has changed (plan " in printed
    assert "refuses to start if they would diverge (agentflow runs check)" in printed


def test_texts_are_for_people(place: Path, text: Command) -> None:
    run_until_it_waits(place)
    created = text("savepoint", "create", "job.yaml")
    name = created.splitlines()[0].removeprefix("savepoint ")
    assert re.search(r"  size +\d+(\.\d)? KiB in \d+ files, \d+(\.\d)? KiB of it new\n  took +\d\.\ds\n$", created)
    assert text("savepoint", "inspect", name).startswith(created[: created.index("  took")])
    assert re.search(r"  goes on at  in\.jsonl \d+\n", text("savepoint", "inspect", name))
    (place / "backups" / "half").mkdir()
    half, whole = text("savepoint", "list", "backups").splitlines()[1:]
    assert half.startswith("backups/half ")
    assert half.endswith("never finished, or is no savepoint")
    assert whole.split()[:2] == [name, "orders"]
    assert re.fullmatch(r"\d+ files, \d+ rows: nothing is damaged\n", text("savepoint", "verify", name))


def test_damage_is_told_with_its_place_and_exit_status_3(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    savepoint = agentflow("savepoint", "create", "job.yaml")
    table = next(file["name"] for file in savepoint["files"] if file["name"].endswith(".sst"))
    path = Path(savepoint["savepoint"]) / table
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(content)
    found = agentflow("savepoint", "verify", savepoint["savepoint"], status=3)["damage"]
    assert {"file": table, "problem": "a file of the savepoint is damaged: checksum mismatch"} in found
    assert f"  {table}: " in text("savepoint", "verify", savepoint["savepoint"], status=3)
    assert "is damaged" in text("savepoint", "restore", savepoint["savepoint"], "elsewhere", status=1)
    assert not (place / "elsewhere" / "subtask-0").exists()


def test_a_damaged_manifest_is_damage_as_any_other(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    savepoint = agentflow("savepoint", "create", "job.yaml")["savepoint"]
    manifest = place / savepoint / "manifest.json"
    content = manifest.read_bytes()
    for damaged in (content[:-5], b"", content.replace(b'"orders"', b'"others"')):
        manifest.write_bytes(damaged)
        (damage,) = agentflow("savepoint", "verify", savepoint, status=3)["damage"]
        assert damage["file"] == "manifest.json"
        assert damage["problem"].startswith("the manifest is damaged: ")
        assert "1 damaged:\n  manifest.json: " in text("savepoint", "verify", savepoint, status=3)


def test_a_missing_file_is_told_as_one(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    savepoint = agentflow("savepoint", "create", "job.yaml")
    table = next(file["name"] for file in savepoint["files"] if file["name"].endswith(".sst"))
    (place / savepoint["savepoint"] / table).unlink()
    found = agentflow("savepoint", "verify", savepoint["savepoint"], status=3)["damage"]
    assert found[0] == {"file": table, "problem": "a file of the savepoint is missing"}
    for command in (
        ["savepoint", "restore", savepoint["savepoint"], "elsewhere"],
        ["state", "list", savepoint["savepoint"]],
    ):
        told = text(*command, status=1)
        assert told.startswith("error: a file of the savepoint is missing\n")
        assert "expected: every file that its manifest names\nhelp: take another savepoint" in told


def test_a_target_that_is_none_or_goes_with_the_state_is_refused(place: Path, text: Command) -> None:
    run_until_it_waits(place)
    before = sorted(path.name for path in place.iterdir())
    for job in ("job.yaml", "state"):
        assert "the text is empty" in text("savepoint", "create", job, "", status=2)
        for target in ("state", "state/backups", "./backups/../state/subtask-0"):
            told = text("savepoint", "create", job, target, status=2)
            assert "is within the state directory" in told
            assert "help: name a directory elsewhere" in told
    assert sorted(path.name for path in place.iterdir()) == before
    assert not (place / "state" / "backups").exists()


def test_old_savepoints_are_deleted_and_newer_ones_stay_whole(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    taken = [agentflow("savepoint", "create", "job.yaml")["savepoint"] for _ in range(4)]
    assert agentflow("savepoint", "delete", taken[0]) == {"deleted": [taken[0]]}
    assert text("savepoint", "prune", "job.yaml", "--keep", "2") == f"1 savepoints deleted\n  {taken[1]}\n"
    assert agentflow("savepoint", "prune", "backups", "--keep", "1") == {"deleted": [taken[2]]}
    assert [one["savepoint"] for one in agentflow("savepoint", "list", "backups")] == [taken[3]]
    assert agentflow("savepoint", "verify", taken[3])["damage"] == []
    assert "there is nothing" in text("savepoint", "delete", taken[0], status=2)


def test_wrong_use_is_told_with_its_fix(place: Path, text: Command) -> None:
    assert "there is no state" in text("savepoint", "create", "job.yaml", status=1)
    assert "there is no such file" in text("savepoint", "create", "nothing.yaml", "backups", status=2)
    assert "is no savepoint: there is nothing" in text("savepoint", "inspect", "backups/nothing", status=2)
    assert "known are s3://, gs://, az://" in text("savepoint", "list", "ftp://bucket/x", status=2)
    assert text("savepoint", "list", "job.yaml").splitlines()[1:] == [], "none was taken yet"
    assert "nowhere: there is no such directory" in text("savepoint", "list", "nowhere", status=2)
    assert "nowhere: there is no such directory" in text("savepoint", "prune", "nowhere", "--keep", "1", status=2)
    assert "in.jsonl is no savepoint: it is a file" in text("savepoint", "verify", "in.jsonl", status=2)
    assert "the text is empty" in text("savepoint", "inspect", "", status=2)
    assert "is not a duration" in text("savepoint", "create", "job.yaml", "b", "--timeout", "soon", status=2)
    (place / "job.yaml").write_text(JOB.replace("savepoint: {dir: backups}\n", ""))
    assert "no savepoint.dir" in text("savepoint", "create", "job.yaml", status=2)
    (place / "job.yaml").write_text(JOB.replace("state: {dir: ./state}\n", "guarantee: none\n"))
    assert "set state.dir" in text("savepoint", "create", "job.yaml", status=2)


def test_the_state_of_another_job_is_refused(place: Path, text: Command) -> None:
    run_until_it_waits(place)
    assert "belongs to another job" in text("savepoint", "create", "job.yaml", "--set", "job=other", status=1)
