"""The suites for connectors find what is wrong with a connector."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import pytest

from agentflow.api.codecs import JSON
from agentflow.connectors.collections import CollectionSink
from agentflow.connectors.function_sink import FunctionSink
from agentflow.core.records import Record
from agentflow.runtime.ports import Guarantee, Staged
from agentflow.testing.conformance.sink import SinkConformance
from agentflow.testing.conformance.source import SourceConformance


class GoodSource:
    """Five records; each test spoils something of it."""

    name = "good"
    is_replayable = True
    codec = JSON
    partitions: tuple[str, ...] = ()
    idle_timeout_ms = None

    async def open(self, positions: Mapping[str, int]) -> None:
        self.next = positions.get("good", 0)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        await asyncio.sleep(0)
        return self.take(records_max)

    def take(self, records_max: int) -> list[Record]:
        first, self.next = self.next, min(5, self.next + records_max)
        return [Record("good", number, number + 1, b"%d" % number) for number in range(first, self.next)]

    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        return positions

    async def release(self, positions: Mapping[str, int]) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


class LosesWhatACancelledFetchTook(GoodSource):
    async def fetch(self, records_max: int) -> Sequence[Record]:
        records = self.take(records_max)
        await asyncio.sleep(0)
        return records


class ReturnsMoreThanItWasAskedFor(GoodSource):
    async def fetch(self, records_max: int) -> Sequence[Record]:
        return self.take(records_max + 1)


class ResumesAtTheLastRecord(GoodSource):
    async def open(self, positions: Mapping[str, int]) -> None:
        self.next = max(0, positions.get("good", 0) - 1)


class GivesTheSameRecordTwice(GoodSource):
    records = [Record("good", number, number + 1, b"%d" % number) for number in range(5)]

    def take(self, records_max: int) -> list[Record]:
        return [self.records[one.offset] for one in super().take(records_max)]


class KeepsWhatWasReadInsteadOfApplied(GoodSource):
    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        return {"good": self.next}

    async def fetch(self, records_max: int) -> Sequence[Record]:
        await asyncio.sleep(0)
        return self.take(1) + self.take(records_max - 1)


class LosesItsPositionAtTheBarrier(GoodSource):
    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        return {}


class NamesARunTwice(GoodSource):
    def take(self, records_max: int) -> list[Record]:
        return [Record("good", one.offset // 2, one.offset // 2 + 1, one.value) for one in super().take(records_max)]


class ReadsOtherPositions(GoodSource):
    async def open(self, positions: Mapping[str, int]) -> None:
        self.next = next(iter(positions.values()), 0)


class LeavesATaskBehind(GoodSource):
    async def open(self, positions: Mapping[str, int]) -> None:
        await super().open(positions)
        self.task = asyncio.ensure_future(asyncio.Event().wait())


class HasOtherLabelsThanPartitions(GoodSource):
    partitions = ("other",)


async def violated(suite: type, fixtures: dict[str, object]) -> set[str]:
    """Return the laws that fail."""
    found = set()
    for name in [name for name in dir(suite) if name.startswith("test_")]:
        law = getattr(suite, name)
        marks = [mark.args for mark in getattr(law, "pytestmark", ()) if mark.name == "parametrize"]
        cases = [{marks[0][0]: value} for value in marks[0][1]] if marks else [{}]
        wanted = law.__code__.co_varnames[1 : law.__code__.co_argcount]
        for case in cases:
            arguments = {**{key: value for key, value in fixtures.items() if key in wanted}, **case}
            try:
                await law(suite(), **arguments)
            except (AssertionError, KeyError):
                found.add(name)
            except pytest.skip.Exception:
                pass
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return found


@pytest.mark.parametrize(
    ("source", "law"),
    [
        (LosesWhatACancelledFetchTook, "test_cancelled_fetch_loses_and_repeats_nothing"),
        (ReturnsMoreThanItWasAskedFor, "test_fetch_size_changes_no_record"),
        (ResumesAtTheLastRecord, "test_reading_resumes_behind_every_record"),
        (GivesTheSameRecordTwice, "test_what_was_given_is_the_engines"),
        (KeepsWhatWasReadInsteadOfApplied, "test_reading_resumes_from_what_barrier_kept"),
        (LosesItsPositionAtTheBarrier, "test_reading_resumes_from_what_barrier_kept"),
        (NamesARunTwice, "test_offsets_increase_strictly_within_a_label"),
        (ReadsOtherPositions, "test_positions_of_others_are_ignored"),
        (LeavesATaskBehind, "test_close_releases_everything_behind_a_cancelled_fetch"),
        (HasOtherLabelsThanPartitions, "test_labels_are_those_of_its_partitions_if_it_has_any"),
    ],
)
async def test_what_is_wrong_with_a_source_violates_a_law(source: type[GoodSource], law: str) -> None:
    assert law in await violated(SourceConformance, {"new_source": source})


async def test_good_source_violates_none() -> None:
    assert await violated(SourceConformance, {"new_source": GoodSource}) == set()


class PublishesAgainInALaterLife(CollectionSink):
    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        await super().open(None)


class PublishesWhenItStages(CollectionSink):
    async def stage(self, checkpoint: int) -> Staged:
        staged = await super().stage(checkpoint)
        self.values += [int(output) if output.isdigit() else output for output in staged.outputs]
        return staged


class MixesEpochs(CollectionSink):
    def barrier(self, checkpoint: int) -> None:
        self._checkpoint = checkpoint

    async def stage(self, checkpoint: int) -> Staged:
        super().barrier(checkpoint)
        return await super().stage(checkpoint)


class LosesWhatACancelledPublishHadBegun(CollectionSink):
    async def publish(self, checkpoint: int, staged: Staged) -> None:
        if checkpoint > self._published:
            self._published = checkpoint
            await asyncio.sleep(0)
            self.values += [int(output) if output.isdigit() else output for output in staged.outputs]


class IsNeverFull(FunctionSink):
    def write(self, record: object) -> None:
        super().write(record)
        self.room.set()


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (PublishesAgainInALaterLife, "test_published_outputs_that_are_published_again_are_there_as_often_as_promised"),
        (PublishesWhenItStages, "test_outputs_are_invisible_until_publish"),
        (MixesEpochs, "test_epochs_do_not_mix"),
        (LosesWhatACancelledPublishHadBegun, "test_cancelled_publish_can_be_repeated_by_the_next_life"),
    ],
)
async def test_what_is_wrong_with_a_sink_violates_a_law(make: type[CollectionSink], law: str) -> None:
    suite, name = SinkConformance(), law
    cases = [{"turns": turns} for turns in range(4)] if "cancelled" in law else [{}]
    failed = 0
    for case in cases:
        place = make()

        def read_visible(place: CollectionSink = place) -> list[bytes]:
            return [value if isinstance(value, bytes) else str(value).encode() for value in place.values]

        with contextlib.suppress(pytest.skip.Exception):
            try:
                await getattr(suite, name)(new_sink=lambda place=place: place, read_visible=read_visible, **case)
            except AssertionError:
                failed += 1
    assert failed


async def test_sink_that_is_never_full_violates_a_law() -> None:
    with pytest.raises(AssertionError, match="outputs that wait are limited"):
        await SinkConformance().test_full_sink_has_room_again_when_it_has_published(
            lambda: IsNeverFull(lambda outputs: None, buffer_max="1KiB")
        )


def test_a_sink_promises_what_its_suite_asks_for() -> None:
    assert {guarantee.value for guarantee in Guarantee} == {"exactly-once", "idempotent", "at-least-once"}
