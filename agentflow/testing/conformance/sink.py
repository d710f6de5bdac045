"""The laws of the port `Sink`.

Subclass the suite with two fixtures: ``new_sink`` makes a sink of one place each time it is called (a later one is a
later life of the first), ``read_visible`` returns the encoded outputs that a reader of the place sees, in order.

All laws are of every sink. One differs by what the sink promises: outputs that were published and are published again by a later life,
because the process died before the checkpoint was complete, are there

- once, of an ``exactly-once`` sink;
- once, of an ``idempotent`` one, for a reader who goes by the deterministic ids of outputs: ``read_visible`` is that reader;
- at least once, of an ``at-least-once`` one.
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from agentflow.core.effects import DeadLetter
from agentflow.core.records import ErrorReport, Record
from agentflow.runtime.ports import BufferingSink, Guarantee, Sink, Staged

NewSink = Callable[[], Sink]
ReadVisible = Callable[[], list[bytes]]
PATIENCE_S = 30.0
_CHUNK = b'"%s"' % (b"x" * 2**16)
_HELD_BYTES_MAX = 2**28  # what a test writes into a sink that says that it holds no more than it may


def output(value: bytes) -> DeadLetter:
    """Return an output that a sink can write; its id follows from the value."""
    return DeadLetter(Record(value[:100].decode(errors="replace"), 0, 1, b"{}"), ErrorReport("KeyError", ""), {}, value)


async def staged_epoch(sink: Sink, checkpoint: int, *values: bytes) -> Staged:
    """Write one epoch and stage it; what comes back has been stored in between, as a checkpoint stores it."""
    for value in values:
        sink.write(output(value))
    sink.barrier(checkpoint)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(await sink.stage(checkpoint)), type=Staged)


class SinkConformance:
    """What every `Sink` obeys."""

    async def test_outputs_are_invisible_until_publish(self, new_sink: NewSink, read_visible: ReadVisible) -> None:
        sink = new_sink()
        await sink.open(None)
        staged = await staged_epoch(sink, 1, b"1", b"2")
        assert read_visible() == []
        await sink.publish(1, staged)
        assert read_visible() == [b"1", b"2"]
        await sink.close()

    async def test_publish_is_repeatable(self, new_sink: NewSink, read_visible: ReadVisible) -> None:
        sink = new_sink()
        await sink.open(None)
        staged = await staged_epoch(sink, 1, b"1")
        await sink.publish(1, staged)
        await sink.publish(1, staged)
        assert read_visible() == [b"1"]
        await sink.close()

    async def test_epochs_do_not_mix(self, new_sink: NewSink, read_visible: ReadVisible) -> None:
        sink = new_sink()
        await sink.open(None)
        sink.write(output(b"1"))
        sink.barrier(1)
        sink.write(output(b"2"))
        staged = await sink.stage(1)
        await sink.publish(1, staged)
        assert read_visible() == [b"1"]
        await sink.publish(2, await staged_epoch(sink, 2, b"3"))
        assert read_visible() == [b"1", b"2", b"3"]
        await sink.close()

    async def test_every_epoch_of_many_is_published_once_and_in_order(
        self, new_sink: NewSink, read_visible: ReadVisible
    ) -> None:
        sink = new_sink()
        await sink.open(None)
        for checkpoint in range(1, 13):
            staged = await staged_epoch(sink, checkpoint, b"%d" % checkpoint, b"-%d" % checkpoint)
            sink.write(output(b"%d" % (checkpoint * 100)))  # of the next epoch
            await sink.publish(checkpoint, staged)
        await sink.close()
        expected = [b"1", b"-1"]
        for checkpoint in range(2, 13):
            expected += [b"%d" % ((checkpoint - 1) * 100), b"%d" % checkpoint, b"-%d" % checkpoint]
        assert read_visible() == expected

    async def test_a_later_life_adds_to_what_is_published(self, new_sink: NewSink, read_visible: ReadVisible) -> None:
        for checkpoint in (1, 2, 3):
            sink = new_sink()
            await sink.open(None if checkpoint == 1 else (checkpoint - 1, Staged()))
            sink.write(output(b'"undecided"'))
            await sink.close()
            sink = new_sink()
            await sink.open(None if checkpoint == 1 else (checkpoint - 1, Staged()))
            await sink.publish(checkpoint, await staged_epoch(sink, checkpoint, b"%d" % checkpoint))
            await sink.close()
        assert read_visible() == [b"1", b"2", b"3"]

    async def test_undecided_outputs_are_dropped_by_open(self, new_sink: NewSink, read_visible: ReadVisible) -> None:
        sink = new_sink()
        await sink.open(None)
        await staged_epoch(sink, 1, b'"lost"')
        await sink.close()
        sink = new_sink()
        await sink.open(None)
        await sink.publish(1, await staged_epoch(sink, 1, b'"again"'))
        assert read_visible() == [b'"again"']
        await sink.close()

    async def test_prepared_outputs_are_published_by_the_next_life(
        self, new_sink: NewSink, read_visible: ReadVisible
    ) -> None:
        sink = new_sink()
        await sink.open(None)
        staged = await staged_epoch(sink, 1, b"1")
        await sink.close()
        sink = new_sink()
        await sink.open((1, staged))
        await sink.publish(1, staged)
        assert read_visible() == [b"1"]
        await sink.close()

    async def test_published_outputs_that_are_published_again_are_there_as_often_as_promised(
        self, new_sink: NewSink, read_visible: ReadVisible
    ) -> None:
        """The process dies behind publish, and before the checkpoint is complete."""
        sink = new_sink()
        await sink.open(None)
        staged = await staged_epoch(sink, 1, b"1", b"2")
        await sink.publish(1, staged)
        await sink.close()
        sink = new_sink()
        await sink.open((1, staged))
        await sink.publish(1, staged)
        await sink.publish(2, await staged_epoch(sink, 2, b"3"))
        await sink.close()
        if sink.guarantee is Guarantee.AT_LEAST_ONCE:
            assert set(read_visible()) == {b"1", b"2", b"3"}
        else:
            assert read_visible() == [b"1", b"2", b"3"]

    @pytest.mark.parametrize("turns", range(4))
    async def test_cancelled_stage_decides_nothing(
        self, new_sink: NewSink, read_visible: ReadVisible, turns: int
    ) -> None:
        sink = new_sink()
        await sink.open(None)
        sink.write(output(b'"lost"'))
        sink.barrier(1)
        await _cancelled_after(turns, sink.stage(1))
        await _closed(sink)
        sink = new_sink()
        await sink.open(None)
        await sink.publish(1, await staged_epoch(sink, 1, b"1"))
        assert read_visible() == [b"1"]
        await sink.close()

    @pytest.mark.parametrize("turns", range(4))
    async def test_cancelled_publish_can_be_repeated_by_the_next_life(
        self, new_sink: NewSink, read_visible: ReadVisible, turns: int
    ) -> None:
        sink = new_sink()
        await sink.open(None)
        staged = await staged_epoch(sink, 1, b"1", b"2")
        await _cancelled_after(turns, sink.publish(1, staged))
        await _closed(sink)
        sink = new_sink()
        await sink.open((1, staged))
        await sink.publish(1, staged)
        await sink.close()
        if sink.guarantee is Guarantee.AT_LEAST_ONCE:
            assert set(read_visible()) == {b"1", b"2"}
        else:
            assert read_visible() == [b"1", b"2"]

    async def test_full_sink_has_room_again_when_it_has_published(self, new_sink: NewSink) -> None:
        sink = new_sink()
        if not isinstance(sink, BufferingSink):
            pytest.skip("the sink says of no limit that outputs wait at")
        await sink.open(None)
        assert sink.room.is_set()
        held = 0
        while sink.room.is_set():
            assert held < _HELD_BYTES_MAX, "outputs that wait are limited"
            sink.write(output(_CHUNK))
            held += len(_CHUNK)
        await sink.publish(1, await staged_epoch(sink, 1))
        assert sink.room.is_set()
        await sink.close()

    async def test_empty_epoch_stages_nothing(self, new_sink: NewSink, read_visible: ReadVisible) -> None:
        sink = new_sink()
        await sink.open(None)
        staged = await staged_epoch(sink, 1)
        assert staged == Staged()
        await sink.publish(1, staged)
        assert read_visible() == []
        await sink.close()
        await sink.close()

    async def test_close_is_repeatable_and_needs_no_open(self, new_sink: NewSink) -> None:
        sink = new_sink()
        await sink.close()
        await sink.close()


async def _cancelled_after(turns: int, work: object) -> None:
    """Start something, cancel it after so many turns of the loop, and wait until it has ended; it may be done before."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=PATIENCE_S)
    assert task.done(), "it ends when it is cancelled"
    if not task.cancelled():
        task.result()


async def _closed(sink: Sink) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await sink.close()
