"""The chunks that are kept of runs: rings, their limits, and what is told of what is not there any more."""

from __future__ import annotations

from agentflow.api.streams import ChunkKind, StreamChunk
from agentflow.runtime.chunks import ChunkBuffers, ChunkLog


def say(log: ChunkLog, text: str = "x", outputs: int = 0) -> None:
    offset = log.last + 1
    chunk = StreamChunk(stream="s", run="r", step="t", attempt=1, offset=offset, kind=ChunkKind.TEXT, text=text)
    log.add(chunk, outputs)


def offsets(log: ChunkLog, after: int = 0) -> list[int]:
    return [chunk.offset for chunk, _ in log.since(after)]


def new_log(buffers: ChunkBuffers | None, lives: int = 0) -> ChunkLog:
    return ChunkLog(lives, buffers, is_fresh=lives == 0)


def test_a_reader_finds_what_came_behind_its_offset() -> None:
    log = new_log(ChunkBuffers(10_000, 10_000))
    for outputs in (0, 0, 1):
        say(log, outputs=outputs)
    assert [(chunk.offset, outputs) for chunk, outputs in log.since(1)] == [(2, 0), (3, 1)]
    assert offsets(log, after=3) == []


def test_a_full_ring_drops_its_oldest_and_keeps_a_chunk_larger_than_itself() -> None:
    buffers = ChunkBuffers(1_000, 100_000)
    log = new_log(buffers)
    for _ in range(5):
        say(log)
    assert offsets(log) == [4, 5]
    say(log, "x" * 5_000)
    assert offsets(log) == [6]
    assert buffers.used_bytes == log.size > 5_000


def test_above_the_limit_of_all_the_run_that_spoke_first_loses_its_chunks() -> None:
    buffers = ChunkBuffers(10_000, 2_000)
    first, second = new_log(buffers), new_log(buffers)
    for _ in range(2):
        say(first)
        say(second)
    say(second)
    assert (offsets(first), offsets(second)) == ([], [1, 2, 3])
    say(first)
    assert (offsets(first), offsets(second)) == ([3], [1, 2, 3]), "it comes behind the other one now"
    say(first)
    assert (offsets(first), offsets(second)) == ([3, 4], [])
    assert buffers.used_bytes == first.size


def test_a_run_that_is_over_takes_nothing_of_the_limit_and_can_be_read_to_its_end() -> None:
    buffers = ChunkBuffers(10_000, 10_000)
    log = new_log(buffers)
    say(log)
    log.release()
    log.release()
    say(log)
    assert buffers.used_bytes == 0
    assert offsets(log) == [1]
    assert log.last == 2


def test_offsets_of_a_run_that_is_taken_up_are_none_of_its_former_life() -> None:
    before, now = new_log(None), new_log(None, lives=2)
    for log in (before, now):
        for _ in range(3):
            say(log)
    assert now.base > before.last
    assert [now.is_known(offset) for offset in (before.last, now.base, now.last, now.last + 1)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_what_has_said_something_that_is_not_final_is_void_when_it_begins_again() -> None:
    log = new_log(None)
    assert not log.is_void("s", "t")
    log.say("s", "t")
    assert log.is_void("s", "t")
    assert not log.is_void("s", "other")
    assert log.settle("s", "t")
    assert not log.settle("s", "t")
    assert not log.is_void("s", "t")


def test_of_a_run_with_an_unknown_past_everything_is_void_until_it_begins() -> None:
    log = ChunkLog(0, None, is_fresh=False)
    assert log.is_void("s", "t")
    log.settle("s", "t")
    assert not log.is_void("s", "t")
