"""Files of JSON lines: what can be wrong with them, and crashes of the sink."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from agentflow.connectors.jsonl import JsonlSource
from agentflow.connectors.jsonl_sink import JsonlSink
from agentflow.errors import OutputLocked, SinkError, SourceError
from agentflow.runtime.ports import Staged
from agentflow.testing.conformance.sink import output, staged_epoch
from agentflow.testing.conformance.source import read_all

VICTIM = """
import asyncio, os, signal, sys
from agentflow.connectors.jsonl_sink import JsonlSink
from agentflow.testing.conformance.sink import output, staged_epoch

async def main():
    sink = JsonlSink(sys.argv[1])
    await sink.open(None)
    await sink.publish(1, await staged_epoch(sink, 1, b"1"))
    await staged_epoch(sink, 2, b"2")
    sink.write(output(b"3" * 2**20))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("name", "position"), [("missing", 0), ("", 0), ("*.none", 0), ("short", 99), ("short", 2), ("gone*", 0)]
)
async def test_unusable_input_is_refused_at_open(tmp_path, name, position):
    (tmp_path / "short").write_bytes(b"1234\n")
    path = str(tmp_path / name)
    source = JsonlSource(path)
    with pytest.raises(SourceError) as caught:
        await source.open({path: position})
    await source.close()
    assert caught.value.where
    assert caught.value.expected
    assert caught.value.fix


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"1\n")])
async def test_file_that_goes_while_it_is_read_fails_the_source(tmp_path, change):
    path = tmp_path / "in"
    path.write_bytes(b"123456789\n" * 300_000)
    source = JsonlSource(str(path))
    await source.open({})
    await source.fetch(1)
    change(path)
    assert await source.fetch(10**6)  # the rest of the block that was read before
    with pytest.raises(SourceError):
        await source.fetch(1)
    await source.close()


async def test_long_line_is_shortened_and_reading_goes_on(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"1\n" + b"x" * 50_000_000 + b"\n2\n")
    records = await read_all(JsonlSource(str(path), record_max_bytes=100))
    assert [record.value for record in records] == [b"1", b"x" * 101, b"2"]
    assert records[1].next_offset == 50_000_003


async def test_kill_leaves_published_files_and_the_prepared_staging(tmp_path):
    out = tmp_path / "out"
    assert (
        subprocess.run(  # noqa: ASYNC221 - nothing else runs in this loop
            [sys.executable, "-c", VICTIM, str(out)], check=False
        ).returncode
        == -9
    )
    first, second = "part-00000-0000000001.jsonl", "part-00000-0000000002.jsonl"
    assert (out / f".{second}").read_bytes() == b"2\n"
    staged = Staged(names=(f".{second}",))
    sink = JsonlSink(str(out))
    await sink.open((2, staged))
    await sink.publish(2, staged)
    await sink.close()
    assert {file.name: file.read_bytes() for file in out.glob("[!.]*")} == {first: b"1\n", second: b"2\n"}


async def test_output_of_another_life_is_never_overwritten(tmp_path):
    (tmp_path / "part-00000-0000000001.jsonl").write_bytes(b"old\n")
    sink = JsonlSink(str(tmp_path))
    await sink.open(None)
    with pytest.raises(SinkError):
        await staged_epoch(sink, 1, b"1")
    await sink.close()


async def test_place_that_is_no_directory_is_refused_at_open(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SinkError, match="cannot be written"):
        await JsonlSink(str(tmp_path / "file")).open(None)


async def test_one_job_per_directory(tmp_path):
    sink = JsonlSink(str(tmp_path / "out"))
    await sink.open(None)
    with pytest.raises(OutputLocked, match="another job"):
        await JsonlSink(str(tmp_path / "out")).open(None)
    other_subtask = JsonlSink(str(tmp_path / "out"), subtask=1)
    await other_subtask.open(None)
    await other_subtask.close()
    await sink.close()
    later = JsonlSink(str(tmp_path / "out"))
    await later.open(None)
    await later.close()


async def test_close_waits_for_a_stage_that_was_cancelled(tmp_path, monkeypatch):
    may_sync, syncing = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow_fsync(fd):
        syncing.set()
        assert may_sync.wait(30)
        fsync(fd)

    sink = JsonlSink(str(tmp_path))
    await sink.open(None)
    sink.write(output(b"1"))
    sink.barrier(1)
    monkeypatch.setattr(os, "fsync", slow_fsync)
    staging = asyncio.ensure_future(sink.stage(1))
    await asyncio.to_thread(syncing.wait)
    staging.cancel()
    await asyncio.wait([staging])
    closing = asyncio.ensure_future(sink.close())
    await asyncio.sleep(0)
    assert not closing.done()
    may_sync.set()
    await closing
    assert [path.name for path in tmp_path.glob(".part-*")] == [".part-00000-0000000001.jsonl"]
