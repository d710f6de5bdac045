"""Rows as records of a compacted topic, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.core.delta import Table
from agentflow.errors import StateVersionTooNew
from agentflow.state.changelog_records import (
    CHECKPOINT_KEY,
    PART_BYTES,
    ChangelogReplay,
    checkpoint_record,
    read_checkpoint,
    records_of,
    row_key,
    rows_of,
)
from agentflow.state.layout import storage_key

values = st.none() | st.binary(max_size=5) | st.sampled_from([PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES]).map(bytes)
writes = st.tuples(
    st.sampled_from(Table), st.integers(0, 2), st.sampled_from([b"", b"\x00", b"k"]), st.sampled_from(["", "a", "b"]), values
)  # fmt: skip
transactions = st.lists(st.lists(writes, max_size=4), max_size=5)


def replayed(records):
    replay = ChangelogReplay()
    rows = {}
    for table, row, value in replay.rows(records):
        if value is None:
            rows.pop((table, row), None)
        else:
            rows[table, row] = value
    return rows, replay


def log_of(transactions):
    """The log, and the rows that it should stand for."""
    log, expected = [], {}
    for number, transaction in enumerate(transactions, 1):
        log += records_of(rows_of(transaction))
        log.append(checkpoint_record(number, {"in/0": number}))
        for table, operator, key, name, value in transaction:
            slot = (int(table), storage_key(operator, key, name))
            if value is None:
                expected.pop(slot, None)
            else:
                expected[slot] = value
    return log, expected


@given(transactions)
def test_a_log_stands_for_its_last_values(transactions):
    log, expected = log_of(transactions)
    rows, replay = replayed(log)
    assert rows == expected
    assert replay.incomplete == []
    assert (replay.last.checkpoint if replay.last else 0) == len(transactions)


@given(transactions, st.integers(0, 40))
def test_compaction_of_any_beginning_changes_nothing(transactions, cleaned):
    log, expected = log_of(transactions)
    last = {key: place for place, (key, _) in enumerate(log)}
    compacted = [entry for place, entry in enumerate(log) if place >= cleaned or last[entry[0]] == place]
    rows, replay = replayed(compacted)
    assert rows == expected
    assert replay.incomplete == []


@given(transactions, st.integers(0, 40))
def test_replaying_a_tail_twice_changes_nothing(transactions, start):
    log, expected = log_of(transactions)
    rows, _ = replayed(log + log[start:])
    if all(value is None or len(value) <= PART_BYTES for writes in transactions for *_, value in writes):
        assert rows == expected


def test_a_large_value_without_its_parts_is_noticed():
    log, _ = log_of([[(Table.MEMORY, 0, b"k", "p", bytes(2 * PART_BYTES))]])
    _, replay = replayed(log[1:])
    assert len(replay.incomplete) == 1


def test_a_newer_changelog_is_refused():
    key, value = checkpoint_record(1, {})
    assert key == CHECKPOINT_KEY
    with pytest.raises(StateVersionTooNew):
        replayed([(key, b"\x94\x63" + value[2:])])


def test_a_checkpoint_record_names_the_partitioner_and_one_of_before_is_readable():
    assert read_checkpoint(checkpoint_record(3, {"in/0": 7}, "crc32")[1]).partitioner == "crc32"
    old = read_checkpoint(b"\x93\x01\x03\x80")
    assert (old.checkpoint, old.positions, old.partitioner) == (3, {}, "")


def test_a_row_says_its_key_and_other_records_have_none():
    rows = [(Table.MEMORY, 0, b"a\x00b", "n", b"1"), (Table.META, 0, b"", "positions", b"1")]
    assert [row_key(key) for key, _ in records_of(rows_of(rows))] == [b"a\x00b", b""]
    assert [row_key(key) for key in (CHECKPOINT_KEY, b"m", None)] == [b"", b"", b""]
