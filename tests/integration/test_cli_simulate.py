"""`agentflow simulate` as a process."""

from __future__ import annotations

import json
import subprocess
import sys


def simulate(*arguments):
    command = [sys.executable, "-m", "agentflow", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_seed_says_what_it_came_to():
    done = simulate("--seed", "7")
    assert done.returncode == 0
    assert done.stdout.startswith("seed 7: ")
    assert done.stdout.rstrip().endswith("ok")


def test_the_trace_is_the_same_each_time_and_shows_faults():
    first, second = simulate("--seed", "812", "--trace"), simulate("--seed", "812", "--trace")
    assert first.stdout == second.stdout
    assert "  ! killed\n" in first.stdout
    assert "  state.prepare 1\n" in first.stdout


def test_a_range_of_seeds_ends_with_a_summary():
    done = simulate("--seeds", "0..9")
    assert (done.returncode, done.stdout) == (0, "10 seeds, 0 failed\n")


def test_json_has_one_object_per_seed():
    done = simulate("--seeds", "3..4", "--json")
    assert [report["seed"] for report in json.loads(done.stdout)] == [3, 4]
    assert all(report["ok"] and report["violations"] == [] for report in json.loads(done.stdout))


def test_a_seed_that_fails_exits_with_3_and_says_how_to_replay_it():
    broken = (
        "import sys\n"
        "from agentflow.runtime.checkpoints import EmbeddedCheckpoints\n"
        "from agentflow.cli.main import main\n"
        "async def complete(self, checkpoint, delta):\n"
        "    staged = {role: await sink.stage(checkpoint) for role, sink in self._sinks.items()}\n"
        "    await self._publish(checkpoint, staged)\n"
        "    await self._state.prepare(checkpoint, delta, staged)\n"
        "    await self._state.complete()\n"
        "EmbeddedCheckpoints.complete = complete\n"
        "sys.exit(main(['simulate', '--seeds', '0..40']))\n"
    )
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "VIOLATED\n" in done.stdout
    assert "help: agentflow simulate --seed N --trace" in done.stderr


def test_wrong_seeds_are_wrong_use():
    for arguments in (("--seeds", "9..1"), ("--seeds", "x"), ("--seed", "-1"), ()):
        done = simulate(*arguments)
        assert done.returncode == 2
        assert "help: agentflow simulate --help" in done.stderr
