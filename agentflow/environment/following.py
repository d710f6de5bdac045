"""Following a run: its outputs, and between them what its actions say while they work."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from agentflow.api.streams import ChunkKind
from agentflow.core.results import RequestResult
from agentflow.environment.answers import failure_of
from agentflow.runtime.chunks import marker
from agentflow.runtime.requests import OpenRequest, RequestTable

_decode = msgspec.json.Decoder().decode


def outputs_of(result: RequestResult) -> list[Any]:
    """Return the outputs of a run that is over.

    Raises:
        RunFailed: It ended early.
    """
    if result.failure is not None:
        raise failure_of(result)
    return [None if output is None else _decode(output) for output in result.outputs]


async def with_chunks(
    table: RequestTable, request: OpenRequest | RequestResult, skip: int, after: int
) -> AsyncGenerator[Any, None]:
    """Yield outputs and chunks of a run in the order in which they came to be.

    Args:
        table: The table that has the request, if it is open.
        request: The request, or how its run ended.
        skip: Outputs that are left out.
        after: Offset of the last chunk that the reader has; 0: it has none.

    Raises:
        RequestError: As `Engine.stream`.
    """
    if isinstance(request, RequestResult):
        if after:
            yield marker(ChunkKind.RESET, request.run_id, after)
        for output in outputs_of(request)[skip:]:
            yield output
        return
    log = table.chunks_of(request)
    assert log is not None, "an engine keeps chunks"
    if after and not log.is_known(after):  # of another process: what its calls have said, it has not recorded
        yield marker(ChunkKind.RESET, request.run_id, log.base)
        after = log.base
    last = max(after, log.base)
    while True:
        for chunk, outputs in log.since(last):
            while skip < min(outputs, len(request.outputs)):
                skip += 1
                yield _decoded(request.outputs[skip - 1])
            if chunk.offset > last + 1:
                yield marker(ChunkKind.GAP, request.run_id, chunk.offset - 1)
            last = chunk.offset
            yield chunk
        if log.last > last and log.since(last):
            continue  # they came while the others were read
        if log.last > last:  # all of them were dropped
            last = log.last
            yield marker(ChunkKind.GAP, request.run_id, last)
        elif skip < len(request.outputs):
            skip += 1
            yield _decoded(request.outputs[skip - 1])
        elif request.is_over:
            break
        else:
            await request.news()
    if request.error is not None:
        raise failure_of(request)


def _decoded(output: bytes | None) -> Any:  # noqa: ANN401 (a value of JSON)
    return None if output is None else _decode(output)
