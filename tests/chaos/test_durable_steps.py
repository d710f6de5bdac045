"""SIGKILL under runs that pay: a real HTTP server counts the calls, and no call whose outcome was seen is made again.

In CI 900 runs and 8 kills; more of both with ``STEPS_CHAOS_RUNS`` and ``STEPS_CHAOS_KILLS``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.payments import AGENT, CALLS_PER_RUN, check, serve_payments

ROOT = Path(__file__).parents[2]
RUNS = int(os.environ.get("STEPS_CHAOS_RUNS", "900"))
KILLS = int(os.environ.get("STEPS_CHAOS_KILLS", "8"))
THREADS_MAX = 16
LOST_MAX = 2 * THREADS_MAX  # in a kill: calls in threads, and those whose outcome is not recorded yet
SEED = 20261121


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_what_has_been_paid_for_is_never_paid_twice(tmp_path: Path) -> None:
    (tmp_path / "payments_agent.py").write_text(AGENT)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"k": "k{n % (RUNS // 3)}", "n": {n}}}\n' for n in range(RUNS)))
    (tmp_path / "job.yaml").write_text(
        "job: payments\nagent: payments_agent:Payments\nsource: {jsonl: {path: in.jsonl}}\nkey-by: k\n"
        "sink: {jsonl: {path: out}}\ncheckpoint: {interval: 200ms}\nstate: {dir: state}\n"
        f"blocking: {{threads-max: {THREADS_MAX}}}\n"
    )
    luck, kills = random.Random(SEED), 0
    with serve_payments() as (service, port):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PAYMENTS_PORT": str(port)}
        while True:
            command = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            until = service.total + RUNS * CALLS_PER_RUN * luck.uniform(0.2, 1.0) / KILLS
            while kills < KILLS and service.total < until and process.poll() is None:
                time.sleep(luck.uniform(0.001, 0.01))
            if kills < KILLS and process.poll() is None:
                process.kill()
                process.communicate()
                kills += 1
                continue
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said.decode()
            break
    outputs = [
        json.loads(line) for part in sorted((tmp_path / "out").glob("part-*")) for line in part.read_text().splitlines()
    ]
    check(service, outputs, RUNS)
    assert kills == KILLS
    again = service.total - len(service.calls)
    assert again < kills * LOST_MAX, f"{again} calls were made again behind {kills} kills"
