"""Runs that pay, ask, sleep and wait for people, while the process is killed at random moments and the people answer all the time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from agentflow.connectors.signal_spool import SignalSpool
from agentflow.runtime.signals import encode_signal

ROOT = Path(__file__).resolve().parents[2]
RUNS = int(os.environ.get("WAITS_CHAOS_RUNS", "600"))
KEYS = RUNS // 12  # each sleeps twelve times, which takes longer than a life
KILLS = int(os.environ.get("WAITS_CHAOS_KILLS", "8"))
AGENT = """\
from agentflow import Agent, EventType, OutputEvent, action


class Asking(Agent):
    @action(EventType.InputEvent)
    async def act(event, ctx):
        n = event.input["n"]

        def pay(amount):
            with open("calls", "a") as calls:
                calls.write(f"{amount} {ctx.idempotency_key}\\n")
            return 2 * amount

        first = await ctx.durable_execute_async(pay, n)
        ctx.send_event(OutputEvent({"asked": n}))
        await ctx.sleep("200ms")
        answer = await ctx.wait_for("answer", correlation=str(n))
        second = await ctx.durable_execute_async(pay, -n)
        count = ctx.short_term_memory.update("count", lambda count: (count or 0) + 1)
        ctx.send_event(OutputEvent({"n": n, "paid": first - second, "answer": answer, "count": count}))
"""
JOB = """\
job: asking
agent: asking:Asking
source: {jsonl: {path: in.jsonl}}
key-by: k
sink: {jsonl: {path: out/}}
state: {dir: ./state}
checkpoint: {interval: 100ms}
run: {park-after: 50ms}
"""


@pytest.mark.chaos
@pytest.mark.timeout(240)
def test_everybody_is_asked_once_answered_once_and_pays_what_is_recorded_once(tmp_path: Path) -> None:
    (tmp_path / "asking.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    lines = (json.dumps({"k": f"k{n % KEYS}", "n": n}) + "\n" for n in range(1, RUNS + 1))
    (tmp_path / "in.jsonl").write_text("".join(lines))
    luck = random.Random(RUNS)
    people = threading.Thread(target=answer, args=(SignalSpool(tmp_path / "state" / "signals"), luck.getrandbits(32)))
    people.start()
    kills = live(tmp_path, luck)
    people.join()
    outputs = [
        json.loads(line) for part in sorted((tmp_path / "out").glob("part-*")) for line in part.read_text().splitlines()
    ]
    assert Counter(one["asked"] for one in outputs if "asked" in one) == Counter(range(1, RUNS + 1))
    ended = [one for one in outputs if "n" in one]
    assert Counter(one["n"] for one in ended) == Counter(range(1, RUNS + 1))
    assert [one for one in ended if (one["paid"], one["answer"]) != (4 * one["n"], 10 * one["n"])] == []
    of_key: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for one in ended:
        of_key[one["n"] % KEYS].append((one["count"], one["n"]))
    assert all(found == sorted(found) for found in of_key.values()), "the runs of a key take their turns"
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    keys: dict[str, set[str]] = defaultdict(set)
    for amount, key in calls:
        keys[amount].add(key)
    assert len(keys) == 2 * RUNS
    assert max(map(len, keys.values())) == 1, "a call in doubt has the same key again"
    assert kills > KILLS // 2, "hardly a kill"


def answer(spool: SignalSpool, seed: int) -> None:
    """Answer everybody, in another order than they ask: some before, some long after."""
    numbers = list(range(1, RUNS + 1))
    random.Random(seed).shuffle(numbers)
    for n in numbers:
        spool.append_now(encode_signal(f"k{n % KEYS}", "answer", 10 * n, correlation=str(n)))


def live(place: Path, luck: random.Random) -> int:
    """Run the job through kills to its end; return how many there were."""
    kills = 0
    while True:
        with (place / "log").open("ab") as log:
            command = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            job = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
        try:
            status = job.wait(0.3 + 0.6 * luck.random() if kills < KILLS else 120)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
            kills += 1
        else:
            assert status == 0, (place / "log").read_text()
            return kills
