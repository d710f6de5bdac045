"""Where keys and subtasks go."""

from __future__ import annotations

import zlib

import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from agentflow.connectors.kafka.assignor import assign_subtasks
from agentflow.connectors.kafka.partitioners import crc32, murmur2
from agentflow.connectors.kafka.sinks import kafka_key
from agentflow.runtime.codecs import encode_key


@given(st.binary(max_size=40), st.integers(1, 1_000))
def test_murmur2_is_that_of_other_clients(key, partitions):
    assert murmur2(key, partitions) == (aiokafka_murmur2(key) & 0x7FFFFFFF) % partitions


@pytest.mark.parametrize(
    ("key", "hashed"), [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-longer-string", -1486304829)]
)
def test_murmur2_is_that_of_java(key, hashed):
    """Values of org.apache.kafka.common.utils.UtilsTest.testMurmur2."""
    assert murmur2(key, 2**31) == hashed & 0x7FFFFFFF


def test_crc32_is_that_of_librdkafka():
    assert crc32(b"key", 7) == zlib.crc32(b"key") % 7


@pytest.mark.parametrize(
    ("key", "shown"), [("ä", "ä".encode()), (b"\xff", b"\xff"), (1, b"1"), (True, b"true"), (2.5, b"2.5")]
)
def test_keys_are_written_as_a_plain_client_would(key, shown):
    assert kafka_key(encode_key(key)) == shown


members = st.dictionaries(st.sampled_from("abcdef"), st.sets(st.integers(0, 20)), min_size=1)


@given(members, st.integers(0, 20))
def test_every_subtask_has_one_owner_and_nobody_has_two_more_than_another(held, count):
    assigned = assign_subtasks(held, range(count))
    assert sorted(subtask for own in assigned.values() for subtask in own) == list(range(count))
    sizes = [len(own) for own in assigned.values()]
    assert max(sizes) - min(sizes) <= 1
    assert set(assigned) == set(held)


@given(st.integers(1, 6), st.integers(0, 20))
def test_a_balanced_group_keeps_what_it_holds(workers, count):
    first = assign_subtasks({f"w{n}": () for n in range(workers)}, range(count))
    assert assign_subtasks(first, range(count)) == first


@given(st.integers(2, 6), st.integers(0, 20))
def test_a_worker_that_leaves_moves_only_its_own_subtasks(workers, count):
    before = assign_subtasks({f"w{n}": () for n in range(workers)}, range(count))
    gone = before.pop("w0")
    after = assign_subtasks(before, range(count))
    for member, own in before.items():
        assert set(own) <= set(after[member])
        assert set(after[member]) - set(own) <= set(gone)
