"""Real processes that die, hold locks, and run into limits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.errors import StateLocked
from agentflow.runtime.ports import Prepared
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.testing.conformance.keyed_state import NEW, OLD, STAGED, laid_over, read_all

ROOT = Path(__file__).parents[3]
VICTIM = [sys.executable, str(Path(__file__).with_name("victim.py"))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def open_state(path):
    return RocksDBKeyedState.open(path, job="unit", free_min_bytes=0)


def run_victim(*arguments):
    return subprocess.run([*VICTIM, *arguments], env=ENVIRONMENT, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("phase", ["prepare", "complete"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 6, 9, 40, 2_000])
async def test_a_killed_process_leaves_the_former_checkpoint_or_a_decided_one(tmp_path, phase, turns):
    ended = run_victim("kill", str(tmp_path / "s"), phase, str(turns))
    assert ended.returncode == -signal.SIGKILL
    old = laid_over({}, OLD)
    with contextlib.closing(open_state(tmp_path / "s")) as state:
        if phase == "complete":
            assert state.checkpoint == 2 or state.prepared == Prepared(2, STAGED)
        else:
            assert state.checkpoint == 1
            assert read_all(state) == old
            if turns == 0:
                assert state.prepared is None
        if state.checkpoint == 1 and state.prepared is None:
            await state.prepare(2, iter(NEW), STAGED)
        await state.complete()
        assert (state.checkpoint, state.prepared) == (2, None)
        assert read_all(state) == laid_over(old, NEW)


def test_a_directory_of_a_living_process_is_refused_with_its_id(tmp_path):
    holder = subprocess.Popen(
        [*VICTIM, "hold", str(tmp_path / "s")], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StateLocked) as refused:
            open_state(tmp_path / "s")
        assert refused.value.where["owner process"] == str(holder.pid)
        holder.stdin.close()
        assert holder.wait() == 0
    open_state(tmp_path / "s").close()


def test_a_lock_dies_with_its_process(tmp_path):
    holder = subprocess.Popen(
        [*VICTIM, "hold", str(tmp_path / "s")], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"open\n"
        holder.kill()
        holder.wait()
    open_state(tmp_path / "s").close()


async def test_a_file_size_limit_is_a_full_disk_and_leaves_the_former_checkpoint(tmp_path):
    ended = run_victim("limit", str(tmp_path / "s"), "2000000")
    assert ended.stdout.startswith("DiskFull "), ended.stdout + ended.stderr
    assert "help: free space" in ended.stdout
    with contextlib.closing(open_state(tmp_path / "s")) as state:
        assert (state.checkpoint, state.prepared) == (1, None)
        assert read_all(state) == laid_over({}, OLD)
