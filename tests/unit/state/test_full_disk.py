"""A disk that is really full."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess

import pytest

from agentflow.errors import DiskFull
from agentflow.runtime.ports import Prepared
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.testing.conformance.keyed_state import (
    NEW,
    OLD,
    STAGED,
    checkpoint,
    laid_over,
    memory_write,
    read_all,
)

NOISE = random.Random(3)
BIG = [[memory_write(b"%d" % number, "p", b"\x00" + NOISE.randbytes(400_000))] for number in range(60)]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("NOT TESTED: a full disk needs the command `mount`")
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: a full disk needs the right to mount a tmpfs ({mounted.stderr.strip()})")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def open_state(mount):
    return RocksDBKeyedState.open(mount / "state", job="unit", free_min_bytes=0)


def fill(mount, *, free=0):
    """Use up all space but ``free`` bytes; returns the file to delete."""
    filler = mount / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    os.truncate(filler, filler.stat().st_size - free)
    return filler


async def test_a_disk_that_fills_up_in_prepare_leaves_the_former_checkpoint(small_disk):
    with contextlib.closing(open_state(small_disk)) as state:
        await checkpoint(state, 1, *OLD)
        filler = fill(small_disk, free=4 * 2**20)
        with pytest.raises(DiskFull) as full:
            await state.prepare(2, iter(BIG), STAGED)
        assert state.prepared is None
        with pytest.raises(DiskFull):  # what is on disk is not known any more
            await state.prepare(2, iter(NEW), STAGED)
    assert full.value.where["directory"] == str(small_disk / "state")
    filler.unlink()
    with contextlib.closing(open_state(small_disk)) as state:
        assert (state.checkpoint, state.prepared) == (1, None)
        assert read_all(state) == laid_over({}, OLD)
        await checkpoint(state, 2, *NEW)
        assert read_all(state) == laid_over(laid_over({}, OLD), NEW)


async def test_a_disk_that_fills_up_in_complete_loses_nothing(small_disk):
    delta = BIG[:14]
    with contextlib.closing(open_state(small_disk)) as state:
        await state.prepare(1, iter(delta), STAGED)
        filler = fill(small_disk)
        with pytest.raises(DiskFull) as full:
            await state.complete()
        assert full.value.fix
    filler.unlink()
    with contextlib.closing(open_state(small_disk)) as state:
        assert state.prepared == Prepared(1, STAGED)
        await state.complete()
        assert (state.checkpoint, read_all(state)) == (1, laid_over({}, delta))


async def test_a_full_disk_at_open_is_said_before_anything_is_made(small_disk):
    filler = fill(small_disk)
    with pytest.raises(DiskFull):
        open_state(small_disk)
    filler.unlink()
    with contextlib.closing(open_state(small_disk)) as state:
        await checkpoint(state, 1, *OLD)
