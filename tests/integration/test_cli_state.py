"""`agentflow state …`: of a job that runs, of one that does not, and of savepoints."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pyarrow import parquet

from tests.integration.test_cli_savepoints import (  # the same job
    INPUTS,
    JOB,
    Command,
    agentflow,
    outputs,
    place,
    run_until_it_waits,
    running,
    text,
    until,
)

__all__ = ["agentflow", "place", "text"]


def test_memory_is_seen_beside_a_running_job_and_in_its_savepoints(place: Path, agentflow: Command) -> None:
    with running(place) as job:
        until(lambda: len(outputs(place / "out")) == len(INPUTS) - 1, place)
        savepoint = agentflow("savepoint", "create", "job.yaml")["savepoint"]
        of_job = agentflow("state", "get", "job.yaml", "--key", "s1")
        assert [(entry["path"], entry["value"]) for entry in of_job["entries"]] == [
            ("last", {"order": 28, "raw": {"$bytes": "/w=="}}),
            ("n", 10),
        ]
        assert agentflow("state", "get", savepoint, "--key", "s1")["entries"] == of_job["entries"]
        assert agentflow("state", "get", "state", "--key", "s1")["entries"] == of_job["entries"]
        listed = agentflow("state", "list", "job.yaml")
        assert [key["key"] for key in listed["keys"]] == ["s0", "s1", "s2"], "s-ask has written nothing: it waits"
        assert {key["paths"] for key in listed["keys"]} == {2}
        assert listed == agentflow("state", "list", savepoint)
        assert job.poll() is None


def test_what_changed_between_two_savepoints_and_the_job(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    first = agentflow("savepoint", "create", "job.yaml")["savepoint"]
    assert agentflow("state", "diff", first, "job.yaml") == []
    more = [{"shop": "s1", "order": 40}, {"shop": 7, "order": 41}]
    with (place / "in.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in more)
    agentflow("signal", "job.yaml", "s-ask", "approval")
    with running(place) as job:
        assert job.wait(30) == 0, (place / "log").read_text()
    found = agentflow("state", "diff", first, "job.yaml", status=3)
    assert [(one["change"], one["key"], one["path"]) for one in found] == [
        ("added", 7, "last"),
        ("added", 7, "n"),
        ("changed", "s1", "last"),
        ("changed", "s1", "n"),
        ("added", "s-ask", "last"),
        ("added", "s-ask", "n"),
    ]
    assert (found[3]["before"], found[3]["after"]) == (10, 11)
    assert "before" not in found[0]
    assert text("state", "diff", first, "job.yaml", "--key", "s1", status=3) == (
        f"--- {first}\n+++ job.yaml\n@@ key 's1' @@\n"
        '- last: {"order":28,"raw":{"$bytes":"/w=="}}\n+ last: {"order":40,"raw":{"$bytes":"/w=="}}\n- n: 10\n+ n: 11\n'
    )
    assert text("state", "diff", "job.yaml", first, "--key", "7", status=3).splitlines()[2:] == [
        "@@ key 7 @@",
        '- last: {"order":41,"raw":{"$bytes":"/w=="}}',
        "- n: 1",
    ]
    assert text("state", "diff", first, "job.yaml", "--key", "s2") == ""


def test_memory_goes_to_files(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    exported = agentflow("state", "export", "job.yaml", "--to", "memory.jsonl")
    assert exported["rows"] == 6
    lines = [json.loads(line) for line in Path("memory.jsonl").read_text().splitlines()]
    assert lines[3] == {"agent": 0, "key": "s1", "path": "n", "value": 10}
    savepoint = agentflow("savepoint", "create", "job.yaml")["savepoint"]
    assert agentflow("state", "export", savepoint, "--key", "s1", "--key", "s2", "--to", "m.parquet")["rows"] == 4
    rows = parquet.read_table("m.parquet").to_pylist()
    assert [(row["key"], row["path"], row["kind"]) for row in rows][:2] == [("s1", "last", "dict"), ("s1", "n", "int")]
    assert text("state", "export", savepoint, "--to", "m2.jsonl").startswith("6 rows of checkpoint ")
    assert Path("m2.jsonl").read_bytes() == Path("memory.jsonl").read_bytes()
    assert "ends with .jsonl or .parquet" in text("state", "export", "job.yaml", "--to", "m.csv", status=2)


def test_texts_are_short_enough_for_scripts(place: Path, text: Command) -> None:
    run_until_it_waits(place)
    assert text("state", "get", "job.yaml", "--key", "s1", "n") == "10\n"
    assert text("state", "get", "job.yaml", "--key", '"s1"') == 'last: {"order":28,"raw":{"$bytes":"/w=="}}\nn: 10\n'
    nothing = text("state", "get", "job.yaml", "--key", "s1", "m", status=3)
    assert nothing.startswith("key 's1' has no memory at m in checkpoint ")
    title, first, more = text("state", "list", "job.yaml", "--limit", "1").splitlines()
    assert title.split() == ["KEY", "AGENT", "PATHS", "BYTES"]
    assert first.split()[:3] == ["'s0'", "0", "2"]
    assert more == "… and more: --limit 10"
    assert [line.split()[0] for line in text("state", "list", "job.yaml", "--prefix", "s2").splitlines()[1:]] == [
        "'s2'"
    ]


def test_what_is_not_there_is_told(place: Path, text: Command) -> None:
    assert "there is no state" in text("state", "list", "job.yaml", status=1)
    assert "is no savepoint: there is nothing" in text("state", "list", "nowhere", status=2)
    run_until_it_waits(place)
    told = text("state", "export", "job.yaml", "--to", "nowhere/x.jsonl", status=2)
    assert told == "error: nowhere/x.jsonl: there is no directory nowhere\nhelp: make it, or name another file\n"
    assert "write one from 1 on" in text("state", "list", "job.yaml", "--limit", "0", status=2)
    (place / "job.yaml").write_text(JOB.replace("state: {dir: ./state}\n", "guarantee: none\n"))
    assert "set state.dir" in text("state", "list", "job.yaml", status=2)


def test_no_row_of_a_damaged_savepoint_is_missed(place: Path, agentflow: Command, text: Command) -> None:
    run_until_it_waits(place)
    savepoint = agentflow("savepoint", "create", "job.yaml")
    tables = [file for file in savepoint["files"] if file["name"].endswith(".sst") and file["size"]]
    assert tables
    for table in tables:
        path = place / savepoint["savepoint"] / table["name"]
        content = path.read_bytes()
        for at in range(0, len(content), 97):  # also in what RocksDB passes over, with the rows behind it
            path.write_bytes(content[:at] + bytes((content[at] ^ 0xFF,)) + content[at + 1 :])
            told = text("state", "list", savepoint["savepoint"], status=1)
            assert "a file of the savepoint is damaged: checksum mismatch" in told
        path.write_bytes(content)
    assert [key["key"] for key in agentflow("state", "list", savepoint["savepoint"])["keys"]] == ["s0", "s1", "s2"]


def test_expired_memory_is_not_shown(place: Path, agentflow: Command) -> None:
    (place / "job.yaml").write_text(JOB.replace("{dir: ./state}", "{dir: ./state, ttl: 1h}"))
    run_until_it_waits(place)
    assert len(agentflow("state", "list", "job.yaml")["keys"]) == 3
    savepoint = agentflow("savepoint", "create", "job.yaml")["savepoint"]
    time.sleep(0.01)
    assert agentflow("state", "list", "job.yaml", "--set", "state.ttl=1ms")["keys"] == []
    assert len(agentflow("state", "list", savepoint)["keys"]) == 3, "as of the moment when it was taken"
