"""Pipes as source and sink."""

from __future__ import annotations

import os

import pytest

from agentflow.connectors.standard_streams import StdinSource, StdoutSink
from agentflow.errors import SinkError
from agentflow.testing.conformance.sink import staged_epoch


async def test_line_is_there_before_the_writer_closes_and_offsets_go_on():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stream:
        source = StdinSource(stream)
        await source.open({"stdin": 40})
        os.write(write_end, b"1\n")
        records = await source.fetch(5)
        assert [(record.offset, record.value) for record in records] == [(40, b"1")]
        os.close(write_end)
        assert await source.fetch(5) == []
        await source.close()


async def test_reader_that_has_gone_fails_the_sink():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb", buffering=0) as stream:
        sink = StdoutSink(stream)
        await sink.open(None)
        staged = await staged_epoch(sink, 1, b"1")
        with pytest.raises(SinkError):
            await sink.publish(1, staged)
