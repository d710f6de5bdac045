"""`agentflow top` beside a job that runs: as text, as JSON, on a terminal; and what it says where nobody answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.widgets import DataTable, Static

from agentflow.cli.top_screen import TopScreen
from agentflow.errors import MetricsUnreachable
from agentflow.observability import names
from agentflow.observability.admin import AdminServer
from agentflow.observability.job_scraper import JobScraper
from agentflow.observability.scrape import fetch

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTFLOW_", "OTEL_"))}
ENVIRONMENT["AGENTFLOW_LOG_FORMAT"] = "console"

AGENT = """\
import asyncio

from agentflow import Agent, Event, EventType, InputEvent, OutputEvent, RunnerContext, action


async def look(n):
    await asyncio.sleep(0.02)
    if n % 10 == 3:
        raise KeyError(n)
    return n


class Shop(Agent):
    @action(EventType.InputEvent)
    async def take(event: InputEvent, ctx: RunnerContext) -> None:
        try:
            await ctx.durable_execute_async(look, event.input["n"])
        except KeyError:
            pass
        ctx.send_event(Event(type="Taken", attributes=event.input))

    @action("Taken")
    async def answer(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(event.attributes["n"]))
        if event.attributes["n"] == 49:
            await ctx.wait_for("the end of the test")
"""

JOB = """\
job: shop
agent: agents:Shop
key-by: n
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
checkpoint.interval: 100ms
admin: {host: 127.0.0.1, port: 0}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(50)))
    return tmp_path


@pytest.fixture
def address(project: Path) -> Iterator[str]:
    """Run the job until all records but the last have ended; that one waits."""
    log = project / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentflow", "run", "job.yaml"],
            cwd=project,
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
            stderr=written,
        )
        try:
            deadline = time.monotonic() + 30
            found = None
            while found is None or not (
                fetch(found).total(names.RECORDS_OUT) == 50 and fetch(found).total(names.RUNS_SLEEPING)
            ):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                match = re.search(r"address=(\S+)", log.read_text())
                found = None if match is None else f"http://{match[1]}"
                time.sleep(0.02)
            yield found
        finally:
            process.kill()
            process.wait()


def top(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentflow", "top", *arguments],
        cwd=project,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_text_shows_totals_subtasks_actions_and_steps(project: Path, address: str) -> None:
    port = address.rpartition(":")[2]
    answer = top(project, "job.yaml", "--set", f"admin.port={port}", "--once", "--interval", "100ms")
    assert answer.returncode == 0, answer.stderr
    totals, *lines = answer.stdout.splitlines()
    assert totals.startswith("job shop  in 0/s  out 0/s  read 50  in flight 1  dead letters 0  restarts 0  loop lag ")
    rows = [line.split() for line in lines if line]
    assert rows[0][:7] == ["SUBTASK", "IN", "FLIGHT", "PENDING", "RETRYING", "ASLEEP", "MAILBOX"]
    assert rows[1][:6] == ["0", "1", "0", "0", "1", "0"]
    assert rows[1][-1] == f"127.0.0.1:{port}"
    assert rows[2] == ["ACTION", "AGENT", "PER", "S", "P50", "P99", "FAILED", "RETRIED", "TOTAL"]
    assert sorted(row[0] for row in rows[3:5]) == ["answer", "take"]
    assert rows[-1] == ["agents.look", "Shop", "0", "-", "-", "5", "0", "50"]


def test_json_has_the_same_as_text_and_no_terminal_is_needed(project: Path, address: str) -> None:
    answer = top(project, address, "--json", "--interval", "100ms")
    assert answer.returncode == 0, answer.stderr
    view = json.loads(answer.stdout)
    assert (view["job"], view["records-in"], view["records-out"], view["in-flight"]) == ("shop", 50, 50, 1)
    (subtask,) = view["subtasks"]
    assert (subtask["subtask"], subtask["sleeping"], subtask["process"]) == (0, 1, address)
    assert subtask["checkpoint"] >= 1
    totals = {call["name"]: (call["total"], call["failures"]) for call in view["actions"] + view["steps"]}
    assert totals == {"take": (50, 0), "answer": (49, 0), "agents.look": (50, 5)}
    assert view["unreachable"] == []
    assert "SUBTASK" in top(project, address, "--interval", "100ms").stdout  # standard output is no terminal


def text_of(app: TopScreen) -> str:
    return "\n".join(str(static.render()) for static in app.query(Static))


def names_in(app: TopScreen, table: str) -> list[str]:
    rows = app.query_one(f"#{table}", DataTable)
    return [str(rows.get_row_at(number)[0]) for number in range(rows.row_count)]


async def test_screen_shows_the_job_and_keys_change_what_it_shows(address: str) -> None:
    app = TopScreen(JobScraper([address]), 3600.0)
    async with app.run_test(size=(140, 40)) as pilot:
        await app.refresh_view()
        await pilot.pause()
        assert "shop" in text_of(app)
        assert "read 50" in text_of(app)
        assert names_in(app, "subtasks") == ["0"]
        assert sorted(names_in(app, "actions")) == ["answer", "take"]
        assert names_in(app, "steps") == ["agents.look"]
        await pilot.press("p")
        assert "paused" in text_of(app)
        await pilot.press("p", "s", "s")
        assert "paused" not in text_of(app)
        assert "most failures first" in text_of(app)
        await pilot.press("q")
    assert app.return_code == 0


async def test_screen_goes_on_asking_where_nobody_answers() -> None:
    served = {"text": b'agentflow_records_in_total{job="shop"} 1.0\n'}
    server = AdminServer("127.0.0.1", 0, lambda: True, lambda: None, lambda: served["text"])
    port = int(server.address.rpartition(":")[2])
    app = TopScreen(JobScraper([f"http://127.0.0.1:{port}"]), 3600.0)
    try:
        async with app.run_test(size=(140, 40)) as pilot:
            await app.refresh_view()
            assert "read 1" in text_of(app)
            server.close()
            await app.refresh_view()
            assert f"there are no metrics at http://127.0.0.1:{port}/metrics: " in text_of(app)
            assert "read 1" in text_of(app), "what was seen last stays"
            served["text"] = b'agentflow_records_in_total{job="shop"} 7.0\n'
            server = AdminServer("127.0.0.1", port, lambda: True, lambda: None, lambda: served["text"])
            await app.refresh_view()
            await pilot.pause()
            assert "read 7" in text_of(app)
            assert not app.query_one("#problem").display
    finally:
        await asyncio.to_thread(server.close)


def test_processes_on_the_following_ports_are_found() -> None:
    def serve(port: int, job: str, records: int) -> AdminServer:
        text = f'agentflow_records_in_total{{job="{job}"}} {records}.0\n'.encode()
        return AdminServer("127.0.0.1", port, lambda: True, lambda: None, lambda: text)

    servers = [serve(0, "shop", 1)]
    first = int(servers[0].address.rpartition(":")[2])
    try:
        servers += [serve(first + 1, "shop", 20), serve(first + 2, "other", 300)]
        scraper = JobScraper([f"http://127.0.0.1:{first}"], has_more=True)
        assert scraper.poll().records_in == 21
        servers.pop(1).close()
        assert scraper.poll().records_in == 1, "one that has gone is missing"
        assert list(scraper.unreachable) == [f"http://127.0.0.1:{first + 1}"]
    finally:
        for server in servers:
            server.close()


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        ([], 2, "error: the following arguments are required: CONFIG|URL\nhelp: agentflow top --help\n"),
        (
            ["job.yaml", "--once"],
            2,
            "error: job.yaml: admin.port is 0, which is any free one\nhelp: set admin.port for",
        ),
        (["job.yaml", "--set", "admin.port=null"], 2, "error: job.yaml: admin.port is not set, so the job serves no"),
        (["http://127.0.0.1:1/"], 1, "error: there are no metrics at http://127.0.0.1:1/metrics: "),
        (
            ["ftp://x"],
            2,
            "error: 'ftp://x' is no address of a process: write http://host:port, as the job's log says\n",
        ),
        (["job.yaml", "job.yaml"], 2, "error: agentflow top takes one job file, or addresses: http://host:port …\n"),
        (["job.yaml", "--interval", "1ms"], 2, "error: argument --interval: '1ms' is too short, write 100ms or more\n"),
        (["job.yaml", "--interval", "soon"], 2, "error: argument --interval: "),
        (["nothing.yaml"], 2, "error: nothing.yaml"),
    ],
)
def test_wrong_use_is_told(project: Path, arguments: list[str], status: int, expected: str) -> None:
    answer = top(project, *arguments)
    assert answer.returncode == status
    assert answer.stderr.startswith(expected)
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"<html>", "what it answers is no Prometheus text: "),
        (b"node_load1 0.3\n", "it serves no metrics of agentflow"),
        (b"", "it serves no metrics of agentflow"),
    ],
)
def test_other_servers_are_told_apart(text: bytes, reason: str) -> None:
    server = AdminServer("127.0.0.1", 0, lambda: True, lambda: None, lambda: text)
    try:
        with pytest.raises(MetricsUnreachable, match=reason):
            fetch(f"http://{server.address}")
        with pytest.raises(MetricsUnreachable, match="it answers 404 Not Found"):
            fetch(f"http://{server.address}/else")
    finally:
        server.close()
