"""A disk that is really full under a file sink."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from agentflow.connectors.standard_streams import StdoutSink
from agentflow.errors import SinkError
from agentflow.testing.conformance.sink import output, staged_epoch
from tests.unit.connectors.part_kinds import KINDS

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("NOT TESTED: a full disk needs the command `mount`")
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: a full disk needs the right to mount a tmpfs ({mounted.stderr.strip()})")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def fill(mount):
    """Use up all space; returns the file to delete."""
    filler = mount / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def visible(kind, directory):
    return [row for file in sorted(directory.glob("[!._]*")) for row in kind.rows(file.read_bytes())]


async def test_disk_that_fills_up_while_writing_leaves_what_is_published_and_only_that(kind, small_disk):
    directory = small_disk / "out"
    sink = kind.new_sink(str(directory))
    await sink.open(None)
    await sink.publish(1, await staged_epoch(sink, 1, b'"kept"'))
    filler = fill(small_disk)
    with pytest.raises(SinkError, match="No space left") as full:
        sink.write(output(b"1" * 2 * MIB))  # more than is buffered
    assert "space" in full.value.fix
    await sink.close()
    assert visible(kind, directory) == ["kept"]
    filler.unlink()
    sink = kind.new_sink(str(directory))
    await sink.open(None)
    assert list(directory.glob(".part-*")) == []
    await sink.publish(2, await staged_epoch(sink, 2, b'"again"'))
    await sink.close()
    assert visible(kind, directory) == ["kept", "again"]


async def test_disk_that_fills_up_before_staging_decides_nothing(kind, small_disk):
    directory = small_disk / "out"
    sink = kind.new_sink(str(directory))
    await sink.open(None)
    fill(small_disk)
    with pytest.raises(SinkError, match="No space left") as full:
        await staged_epoch(sink, 1, b'"lost"')
    assert full.value.where
    await sink.close()
    assert visible(kind, directory) == []


@pytest.fixture
def full_device():
    """A stream on which there is never any space."""
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("NOT TESTED: there is no /dev/full")
    with path.open("wb", buffering=0) as stream:
        yield stream


async def test_standard_output_on_a_full_device_fails_the_sink(full_device):
    sink = StdoutSink(full_device)
    await sink.open(None)
    staged = await staged_epoch(sink, 1, b"1")
    with pytest.raises(SinkError, match="No space left") as full:
        await sink.publish(1, staged)
    assert full.value.fix
    await sink.close()
