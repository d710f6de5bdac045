"""Lines that are longer than any record may be."""

from __future__ import annotations

import tracemalloc

import pytest

from agentflow.connectors.jsonl import JsonlSource
from agentflow.connectors.lines import LineSplitter
from agentflow.testing.conformance.source import read_all

MIB = 2**20


async def test_line_of_50_mb_is_never_held_whole(tmp_path):
    path = tmp_path / "in"
    with path.open("wb") as file:
        file.write(b"1\n")
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b"\n2\n")
    source = JsonlSource(str(path), record_max_bytes=MIB)
    tracemalloc.start()
    try:
        records = await read_all(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(record.offset, record.next_offset, len(record.value)) for record in records] == [
        (0, 2, 1),
        (2, 50_000_003, MIB + 1),
        (50_000_003, 50_000_005, 1),
    ]
    assert peak < 10 * MIB


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("block", [1, 2, 3, 5, 100])
def test_line_as_long_as_allowed_is_whole_and_one_byte_more_is_not(end, block):
    lines = LineSplitter("in", 0, 4)
    stream = b"1234" + (end or b"\n") + b"12345" + end
    records = [
        record for at in range(0, len(stream), block) for record in lines.feed(stream[at : at + block])
    ] + lines.finish()
    assert [record.value for record in records] == [b"1234", b"12345"]
    assert records[-1].next_offset == len(stream)
