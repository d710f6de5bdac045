"""Where keys and subtasks go."""

from __future__ import annotations

import zlib

import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from agentflow.connectors.kafka.assignor import assign_subtasks
from agentflow.connectors.kafka.partitioners import crc32, murmur2
from agentflow.connectors.kafka.placement import Placement
from agentflow.connectors.kafka.sinks import kafka_key
from agentflow.errors import ConfigError
from agentflow.runtime.codecs import encode_key
from agentflow.runtime.settings import KafkaSettings


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


# -- what is known of a job's partitioner
def placement(partitioner="auto", *, check=True, is_rekeyed=False, stored=(), count=4):
    settings = KafkaSettings(partitioner=partitioner, partitioner_check=check)
    return Placement(settings, count, is_rekeyed=is_rekeyed, stored=stored)


def samples(partitioner, keys):
    return [("in", partitioner(key, 4), offset, key) for offset, key in enumerate(keys)]


KEYS = [b"u%d" % number for number in range(40)]
COMMON = [key for key in KEYS if crc32(key, 4) == murmur2(key, 4)]


def test_what_is_configured_is_used_and_is_settled_when_a_record_has_shown_it():
    made = placement("crc32")
    made.look(samples(crc32, COMMON))
    assert (made.name, made.stored_name) == ("crc32", "")
    made.look(samples(crc32, KEYS))
    assert made.stored_name == "crc32"
    with pytest.raises(ConfigError, match=r"set kafka\.partitioner: murmur2"):
        placement("crc32").look(samples(murmur2, KEYS))


def test_a_job_with_a_key_of_its_own_is_settled_before_it_has_read_anything():
    made = placement(is_rekeyed=True)
    assert (made.stored_name, made.is_watched) == ("murmur2", False)


def test_records_that_fit_several_rules_settle_nothing_and_the_first_that_fits_one_does():
    made = placement()
    made.look([])
    made.look(samples(crc32, COMMON))
    assert (made.name, made.stored_name) == ("murmur2", "")
    made.look(samples(crc32, KEYS))
    assert made.stored_name == "crc32"
    assert made(KEYS[0], 7) == crc32(KEYS[0], 7)


def test_records_that_fit_no_rule_are_an_error():
    with pytest.raises(ConfigError, match="let every producer of the input use one partitioner"):
        placement().look(samples(lambda key, count: (crc32(key, count) + murmur2(key, count)) % count, KEYS))


def test_a_settled_rule_is_never_replaced_by_what_records_show():
    made = placement()
    made.look(samples(crc32, KEYS))
    with pytest.raises(ConfigError, match="by crc32"):
        made.look(samples(murmur2, KEYS))
    assert made.name == "crc32"


@pytest.mark.parametrize("is_rekeyed", [False, True])
def test_what_is_stored_is_taken_by_auto_and_never_by_another_configuration(is_rekeyed):
    assert placement(stored=["crc32"], is_rekeyed=is_rekeyed).stored_name == "crc32"
    assert placement("crc32", stored=["crc32"], is_rekeyed=is_rekeyed).stored_name == "crc32"
    with pytest.raises(ConfigError, match=r"placed by crc32, and the job has .* murmur2"):
        placement("murmur2", stored=["crc32"], is_rekeyed=is_rekeyed)


@pytest.mark.parametrize("is_rekeyed", [False, True])
def test_checkpoints_that_contradict_each_other_are_an_error(is_rekeyed):
    with pytest.raises(ConfigError):
        placement(stored=["crc32", "murmur2"], is_rekeyed=is_rekeyed)


def test_a_worker_that_knows_nothing_learns_from_a_subtask_that_it_takes_over():
    made = placement()
    made.meet("crc32")
    assert made.stored_name == "crc32"


def test_a_worker_that_has_placed_keys_refuses_a_subtask_with_others():
    made = placement(is_rekeyed=True)
    with pytest.raises(ConfigError, match="placed by crc32"):
        made.meet("crc32")


def test_without_the_check_the_configured_one_is_for_outputs_only_and_may_change():
    assert placement("murmur2", check=False, stored=["crc32"]).name == "murmur2"
    with pytest.raises(ConfigError):
        placement("murmur2", check=False, stored=["crc32"], is_rekeyed=True)


def test_rows_of_older_versions_say_where_keys_are():
    made = placement(is_rekeyed=True)
    made.look_at_rows(samples(crc32, KEYS))
    assert made.stored_name == "crc32"
    with pytest.raises(ConfigError, match=r"set kafka\.partitioner: crc32"):
        placement("murmur2", is_rekeyed=True).look_at_rows(samples(crc32, KEYS))
    with pytest.raises(ConfigError, match="split already"):
        placement(is_rekeyed=True).look_at_rows([*samples(crc32, KEYS), *samples(murmur2, KEYS)])
    unlooked = placement(is_rekeyed=True, check=False)
    unlooked.look_at_rows(samples(crc32, KEYS))
    assert unlooked.stored_name == "murmur2"


def test_one_partition_shows_nothing():
    assert placement(count=1).stored_name == "murmur2"
