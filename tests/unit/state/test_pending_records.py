"""Records of a repartition topic on their way through a file: however it is cut into chunks, and where it is damaged."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.errors import StateCorrupted
from agentflow.state.kafka_savepoints import PendingRecord, pending_records

optional_bytes = st.none() | st.binary(max_size=20)
headers = st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=4)), max_size=2)
records = st.lists(st.builds(PendingRecord, optional_bytes, optional_bytes, st.integers(0, 2**40), headers), max_size=5)


def content_of(written: list[PendingRecord]) -> bytes:
    encoded = [msgspec.msgpack.encode(record) for record in written]
    return b"".join(len(one).to_bytes(4, "big") + one for one in encoded)


@given(records, st.integers(1, 50))
def test_records_come_back_however_the_file_is_cut(written: list[PendingRecord], size: int) -> None:
    content = content_of(written)
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    assert list(pending_records(chunks)) == written


def test_a_file_that_ends_early_or_says_nonsense_is_damaged() -> None:
    content = content_of([PendingRecord(b"k", b"v", 1, [])])
    with pytest.raises(StateCorrupted, match="in the middle of a record"):
        list(pending_records([content[:-1]]))
    with pytest.raises(StateCorrupted, match="cannot be read"):
        list(pending_records([content[:4] + b"\xc1" * (len(content) - 4)]))
