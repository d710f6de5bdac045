"""The laws of the port `RecordTarget`.

Subclass the suite with two fixtures: ``new_target`` makes a target of one place each time it is called (a later one is a later life of
the first), ``read_records`` returns the records that a reader of the place sees.
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

from collections.abc import Callable

from agentflow.runtime.ports import RecordTarget

NewTarget = Callable[[], RecordTarget]
ReadRecords = Callable[[], list[str]]
"""Returns the event ids that a reader finds, in the order of each subtask."""


def record(number: int) -> bytes:
    """Return a record of the event log, whose event id is a number."""
    shared = b'{"timestamp":"2026-08-05T10:00:00.000000Z","logLevel":"STANDARD","inputRunId":"in/%d","businessKey":"k","agentName":"A",'
    return shared % number + b'"eventId":"%d","eventType":"_input_event","eventAttributes":{"input":{"n":%d}}}\n' % (
        number,
        number,
    )


class RecordTargetConformance:
    """What every `RecordTarget` obeys."""

    def test_records_are_there_when_write_returns(self, new_target: NewTarget, read_records: ReadRecords) -> None:
        target = new_target()
        target.write(0, [record(1)])
        assert read_records() == ["1"]
        target.close()

    def test_records_keep_their_order_over_writes_and_pieces(
        self, new_target: NewTarget, read_records: ReadRecords
    ) -> None:
        target = new_target()
        target.write(0, [record(1) + record(2), record(3)])
        target.tend()
        target.write(0, [record(4)])
        target.close()
        assert read_records() == ["1", "2", "3", "4"]

    def test_a_later_life_adds_to_what_is_there(self, new_target: NewTarget, read_records: ReadRecords) -> None:
        for number in (1, 2):
            target = new_target()
            target.write(0, [record(number)])
            target.close()
        assert read_records() == ["1", "2"]

    def test_nothing_is_there_where_nothing_was_written(self, new_target: NewTarget, read_records: ReadRecords) -> None:
        target = new_target()
        target.tend()
        target.close()
        assert read_records() == []

    def test_many_records_in_many_pieces_arrive_whole(self, new_target: NewTarget, read_records: ReadRecords) -> None:
        target = new_target()
        target.write(3, [record(number) for number in range(2_000)])
        target.close()
        assert read_records() == [str(number) for number in range(2_000)]
