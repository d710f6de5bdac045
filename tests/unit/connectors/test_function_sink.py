"""A function as a sink: what it is given, how often, and what its errors do."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agentflow import FunctionSink, OutputRecord, idempotent
from agentflow.errors import SinkError, SinkForbidden
from agentflow.runtime.ports import Guarantee, Staged
from agentflow.testing.conformance.sink import staged_epoch


def test_function_says_itself_that_it_is_idempotent() -> None:
    @idempotent
    def store(outputs: list[OutputRecord]) -> None: ...

    assert FunctionSink(store).guarantee is Guarantee.IDEMPOTENT
    assert FunctionSink(print).guarantee is Guarantee.AT_LEAST_ONCE
    assert FunctionSink(print, idempotent=True).guarantee is Guarantee.IDEMPOTENT


async def test_synchronous_function_runs_beside_the_loop_and_close_waits_for_it() -> None:
    may_end, began, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(outputs: list[OutputRecord]) -> None:
        began.set()
        assert may_end.wait(30)
        ended.set()

    sink = FunctionSink(slow)
    await sink.open(None)
    publishing = asyncio.ensure_future(sink.publish(1, await staged_epoch(sink, 1, b"1")))
    await asyncio.to_thread(began.wait)
    publishing.cancel()
    await asyncio.wait([publishing])
    closing = asyncio.ensure_future(sink.close())
    await asyncio.sleep(0)
    assert not closing.done()
    may_end.set()
    await closing
    assert ended.is_set()


async def test_cancelled_publish_cancels_an_asynchronous_function() -> None:
    is_cancelled = False

    async def slow(outputs: list[OutputRecord]) -> None:
        nonlocal is_cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_cancelled = True
            raise

    sink = FunctionSink(slow)
    await sink.open(None)
    publishing = asyncio.ensure_future(sink.publish(1, await staged_epoch(sink, 1, b"1")))
    await asyncio.sleep(0)
    publishing.cancel()
    await asyncio.wait([publishing])
    assert is_cancelled
    await sink.close()


async def test_error_of_the_function_says_where_and_the_same_outputs_come_again() -> None:
    calls: list[list[OutputRecord]] = []

    async def flaky(outputs: list[OutputRecord], *, table: str) -> None:
        calls.append(outputs)
        if len(calls) == 1:
            raise ConnectionError(f"no {table}")

    sink = FunctionSink(flaky, options={"table": "alerts"})
    await sink.open(None)
    staged = await staged_epoch(sink, 1, b"1", b"2")
    with pytest.raises(SinkError, match="ConnectionError: no alerts") as caught:
        await sink.publish(1, staged)
    assert "test_function_sink" in str(caught.value.where["function"])
    assert (caught.value.where["checkpoint"], caught.value.where["outputs"]) == (1, 2)
    await sink.publish(1, staged)
    assert calls[0] == calls[1]
    assert [output.value for output in calls[0]] == [1, 2]
    await sink.close()


async def test_error_that_says_its_recovery_is_left_alone() -> None:
    def forbidden(outputs: list[OutputRecord]) -> None:
        raise SinkForbidden("the key was revoked")

    sink = FunctionSink(forbidden)
    await sink.open(None)
    with pytest.raises(SinkForbidden, match="revoked"):
        await sink.publish(1, await staged_epoch(sink, 1, b"1"))
    await sink.close()


async def test_room_is_gone_above_the_limit_and_back_when_outputs_are_published() -> None:
    sink = FunctionSink(lambda outputs: None, buffer_max="1KiB")
    await sink.open(None)
    assert sink.room.is_set()
    staged = await staged_epoch(sink, 1, b'"%s"' % (b"x" * 2000))
    assert not sink.room.is_set()
    await sink.publish(1, staged)
    assert sink.room.is_set()
    await sink.close()


async def test_epoch_without_outputs_calls_nobody() -> None:
    sink = FunctionSink(lambda outputs: pytest.fail("called"))
    await sink.open(None)
    await sink.publish(1, Staged())
    await sink.close()


@pytest.mark.parametrize(
    ("function", "options", "what"),
    [("table", {}, "not a str"), (lambda: None, {}, "takes no list of outputs"), (print, {"seq": 1}, "takes no list")],
)
def test_what_is_no_sink_function_is_refused_at_once(function: Any, options: dict[str, Any], what: str) -> None:
    with pytest.raises(TypeError, match=what):
        FunctionSink(function, options=options)
