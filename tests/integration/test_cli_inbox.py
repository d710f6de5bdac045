"""`agentflow inbox`: people approve and deny calls of tools beside a job that runs, and of one that does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentflow.cli.main import main
from agentflow.runtime.inbox import this_user
from tests.cli_jobs import running, until
from tests.desk_agent import DESK

JOB = """\
job: desk
agent: desk:agent
source: {jsonl: {path: in.jsonl}}
key-by: order
sink: {jsonl: {path: out/}}
state: {dir: ./state}
checkpoint: {interval: 50ms}
run: {park-after: 100ms}
"""
ORDERS = ("o-1", "o-2", "o-3")
Command = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "desk.py").write_text(DESK)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"order": order}) + "\n" for order in ORDERS))
    return tmp_path


@pytest.fixture
def inbox(place: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str, status: int = 0) -> Any:
        assert main(["inbox", *arguments, "--json"]) == status
        written = capsys.readouterr().out
        return json.loads(written) if status == 0 else written

    return run


def refunds(place: Path) -> list[str]:
    file = place / "refunds"
    return sorted(file.read_text().splitlines()) if file.exists() else []


def answers(place: Path) -> dict[str, str]:
    lines = [line for part in sorted((place / "out").glob("part-*")) for line in part.read_text().splitlines()]
    return {one["order"]: one["answer"] for one in map(json.loads, lines) if "answer" in one}


def all_wait(inbox: Command, place: Path) -> dict[str, dict[str, Any]]:
    """Wait until every order waits for a person; return the waits by their orders."""
    until((place / "state" / "subtask-0" / "journal").exists, place)
    waits = until(lambda: len(found := inbox("job.yaml")) == len(ORDERS) and found, place)
    return {wait["key"]: wait for wait in waits}


def test_calls_are_listed_shown_approved_changed_and_denied_beside_a_running_job(place: Path, inbox: Command) -> None:
    with running(place) as job:
        waits = all_wait(inbox, place)
        assert inbox("list", "job.yaml") == inbox("job.yaml")
        first, second, third = (waits[order]["id"] for order in ORDERS)
        shown = inbox("show", "job.yaml", first[:8])
        assert shown == waits["o-1"]
        assert shown["about"] == {
            "tool": "refund",
            "arguments": {"order": "o-1", "amount": 25, "card_token": "***"},
            "description": "Pay money back.",
        }
        approved = inbox("approve", "job.yaml", first)
        assert approved == {"id": first, "run": shown["run"], "approved": True, "by": this_user()}
        inbox("deny", "job.yaml", second[:8], "--reason", "too much")
        inbox("approve", "job.yaml", third, "--arguments", '{"order": "o-3", "amount": 5}')
        until(lambda: len(answers(place)) == 3, place)
        assert job.wait(30) == 0
    assert refunds(place) == ["o-1 25", "o-3 5"]
    denied = "told: The call of tool `refund` was denied: too much"
    assert answers(place) == {"o-1": "told: refunded 25", "o-2": denied, "o-3": "told: refunded 5"}
    assert "nobody waits under the id" in inbox("approve", "job.yaml", first, status=3)


def test_a_stopped_job_reads_the_answers_when_it_starts_and_only_the_first_ones(place: Path, inbox: Command) -> None:
    with running(place):
        waits = all_wait(inbox, place)
    inbox("deny", "job.yaml", waits["o-1"]["id"], "--reason", "no")
    again = inbox("approve", "job.yaml", waits["o-1"]["id"], status=3)
    assert again == f"wait {waits['o-1']['id']} is answered already; its answer is on its way to the job\n"
    approved = inbox("approve", "job.yaml", "--all", "--tool", "refund")
    assert {one["id"] for one in approved} == {waits["o-2"]["id"], waits["o-3"]["id"]}
    nobody = inbox("approve", "job.yaml", "--all", "--tool", "refund", status=3)
    assert nobody == "no call of tool 'refund' waits for an approval\n"
    with running(place) as job:
        assert job.wait(30) == 0, (place / "log").read_text()
    assert refunds(place) == ["o-2 25", "o-3 25"]
    assert answers(place)["o-1"] == "told: The call of tool `refund` was denied: no"


def test_an_approval_outlives_a_kill_before_the_call_is_made(
    place: Path, inbox: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(place) as job:
        waits = all_wait(inbox, place)
        (place / "die").touch()
        inbox("approve", "job.yaml", waits["o-1"]["id"])
        assert job.wait(30) == -9
    assert refunds(place) == []
    again = inbox("deny", "job.yaml", waits["o-1"]["id"], status=3)
    assert f'it has ended: {{"approved":true,"by":"{this_user()}"}} by signals/0' in again
    assert main(["journal", "show", "job.yaml", waits["o-1"]["run"]]) == 0
    assert f'"by":"{this_user()}"' in capsys.readouterr().out
    with running(place) as job:
        until(lambda: answers(place), place)
        assert {wait["key"] for wait in inbox("job.yaml")} == {"o-2", "o-3"}
    assert (refunds(place), answers(place)) == (["o-1 25"], {"o-1": "told: refunded 25"})


def test_what_nobody_approves_in_time_is_denied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPROVAL_TIMEOUT", "200ms")
    with running(place) as job:
        assert job.wait(30) == 0, (place / "log").read_text()
    late = "told: The call of tool `refund` was denied: nobody has approved it in time"
    assert (refunds(place), answers(place)) == ([], dict.fromkeys(ORDERS, late))


def test_people_are_told_in_words(place: Path, inbox: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with running(place):
        waits = all_wait(inbox, place)
    wait = waits["o-1"]
    assert main(["inbox", "job.yaml"]) == 0
    heads, *rows = capsys.readouterr().out.splitlines()
    assert heads.split() == ["ID", "KEY", "SIGNAL", "ABOUT", "CORRELATION", "RUN", "SINCE", "UNTIL"]
    assert any(row.startswith(f'{wait["id"]}  \'o-1\'  approval  refund {{"order":"o-1","amount":25,') for row in rows)
    assert main(["inbox", "show", "job.yaml", wait["id"]]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"id           {wait['id']}\nkey          'o-1'\nsignal       approval\n")
    assert '"card_token": "***"' in shown
    assert main(["inbox", "deny", "job.yaml", wait["id"]]) == 0
    assert capsys.readouterr().out == f"denied {wait['id']}\n"
    assert main(["inbox", "show", "job.yaml", "00000000"]) == 3
    assert capsys.readouterr().out == "nobody waits under the id '00000000'\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["approve", "job.yaml"], "which call?"),
        (["approve", "job.yaml", "--all"], "--all goes with --tool NAME"),
        (["approve", "job.yaml", "--tool", "refund"], "which call?"),
        (["approve", "job.yaml", "0000", "--all", "--tool", "refund"], "--all goes with --tool NAME"),
        (["approve", "job.yaml", "0000", "--arguments", "[5]"], "is no JSON object"),
        (["approve", "job.yaml", "--reason", "x", "0000", "--arguments", "{"], "is no JSON object"),
        (["deny", "job.yaml"], "the following arguments are required: ID"),
        (["list"], "the following arguments are required: JOB"),
        ([], "the following arguments are required: JOB"),
    ],
)
def test_wrong_use_is_told(place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert main(["inbox", *arguments]) == 2
    assert told in capsys.readouterr().err
