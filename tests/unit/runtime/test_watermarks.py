"""The watermark of a subtask is the least of those of its partitions, without the idle ones."""

from __future__ import annotations

import pytest

from agentflow.core.records import Record
from agentflow.runtime.settings import EventTimeSettings
from agentflow.runtime.watermarks import WatermarkGenerator


def record(source, timestamp_ms):
    return Record(source, 0, 1, b"", None, timestamp_ms)


def generator(partitions=("a/0", "b/0"), idle_timeout_ms=None, **settings):
    return WatermarkGenerator(
        EventTimeSettings(**{"watermarks": "ascending"} | settings), partitions, idle_timeout_ms, 0
    )


def test_strategy_follows_from_the_field_where_none_is_named():
    assert not generator(watermarks=None).is_active
    assert generator(watermarks=None, field="t").is_active
    assert not generator(watermarks="none", field="t").is_active


@pytest.mark.parametrize(("strategy", "expected"), [("ascending", 99), ("bounded-out-of-orderness", 89)])
def test_watermark_stays_behind_the_latest_timestamp(strategy, expected):
    watermarks = generator((), watermarks=strategy, max_out_of_orderness_ms=10)
    assert watermarks.take([record("x", 100), record("y", 50)], 0) == expected
    assert watermarks.take([record("x", 60)], 0) is None


def test_partition_that_has_brought_nothing_holds_the_watermark():
    watermarks = generator()
    assert watermarks.take([record("a/0", 100)], 1) is None
    assert watermarks.take([record("b/0", 40)], 2) == 39
    assert watermarks.take([record("a/0", 900)], 3) is None
    assert watermarks.take([record("b/0", 200), record("a/0", 950)], 4) == 199
    assert watermarks.next_idle_ms is None


@pytest.mark.parametrize("arrival_ms", [0, 1, 299, 300, 1000])
def test_idle_partition_does_not_hold_it_whenever_the_other_one_brought_its_record(arrival_ms):
    watermarks = generator(idle_timeout_ms=300)
    at_once = watermarks.take([record("a/0", 100)], arrival_ms)
    if at_once is None:
        assert watermarks.next_idle_ms == 300
        at_once = watermarks.pass_time(300, is_paused=False)
    assert at_once == 99
    assert watermarks.next_idle_ms is None


def test_all_idle_leave_the_watermark_of_the_latest_whichever_went_first():
    watermarks = generator(idle_timeout_ms=300)
    assert watermarks.take([record("a/0", 500)], 10) is None
    assert watermarks.take([record("b/0", 100)], 20) == 99
    assert watermarks.next_idle_ms == 320
    assert watermarks.pass_time(310, is_paused=False) is None
    assert watermarks.pass_time(320, is_paused=False) == 499


def test_partition_that_is_not_asked_is_not_idle():
    watermarks = generator(idle_timeout_ms=300)
    watermarks.take([record("a/0", 100)], 0)
    assert watermarks.pass_time(300, is_paused=True) is None
    assert watermarks.next_idle_ms == 600
    assert watermarks.pass_time(600, is_paused=False) == 99
