"""The laws of the port `Sink`.

Subclass the suite with two fixtures: ``new_sink`` makes a sink of one place each time it is called (a later one is a
later life of the first), ``read_visible`` returns the encoded outputs that a reader of the place sees, in order.
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

from collections.abc import Callable

from agentflow.core.effects import DeadLetter
from agentflow.core.records import ErrorReport, Record
from agentflow.runtime.ports import Sink, Staged

NewSink = Callable[[], Sink]
ReadVisible = Callable[[], list[bytes]]


def output(value: bytes) -> DeadLetter:
    """Return an output that a sink can write."""
    return DeadLetter(Record("in", 0, 1, b"{}"), ErrorReport("KeyError", ""), {}, value)


async def staged_epoch(sink: Sink, checkpoint: int, *values: bytes) -> Staged:
    """Write one epoch and stage it."""
    for value in values:
        sink.write(output(value))
    sink.barrier(checkpoint)
    return await sink.stage(checkpoint)


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

    async def test_empty_epoch_stages_nothing(self, new_sink: NewSink, read_visible: ReadVisible) -> None:
        sink = new_sink()
        await sink.open(None)
        staged = await staged_epoch(sink, 1)
        assert staged == Staged()
        await sink.publish(1, staged)
        assert read_visible() == []
        await sink.close()
        await sink.close()
