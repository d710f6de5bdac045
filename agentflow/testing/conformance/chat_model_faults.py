"""The laws of adapters of chat models when the provider, the network or the caller ends a call; part of `ChatModelConformance`."""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

import asyncio
import traceback

import msgspec
import pytest

from agentflow.api.chat_models import BaseChatModelConnection, ChatDelta
from agentflow.errors import ContextTooLong as TooLong
from agentflow.errors import ModelError, ModelRejected, ModelUnavailable, RateLimited
from agentflow.testing.conformance.chat_model_world import (
    Arrivals,
    ChatModelWorld,
    NewConnection,
    ask,
    both_ways,
    idle,
    served,
)
from agentflow.testing.model_server import (
    ContextTooLong,
    Cut,
    Dropped,
    Fault,
    HttpError,
    Hung,
    MalformedBody,
    Reply,
    Stalled,
    StreamFailed,
    Unauthorized,
)

_LONG = Reply("this is an answer whose rest never comes", chunk_count=8)


class ChatModelFaults(ChatModelWorld):
    """What every adapter makes of what goes wrong."""

    async def failed(self, new_connection: NewConnection, fault: Fault, *, is_streamed: bool) -> ModelError:
        """Return the error of a call, which was sent once."""
        async with served(new_connection, fault) as (server, connection):
            with pytest.raises(ModelError) as raised:
                await ask(connection, self.request(idempotency_key="run-1:step-2"), is_streamed=is_streamed)
            assert server.count() == 1, "no call is repeated by the SDK"
            await idle(server)
            assert (raised.value.provider, raised.value.model) == (connection.provider, self.model)
        assert raised.value.idempotency_key == "run-1:step-2"
        return raised.value

    @both_ways
    @pytest.mark.parametrize("status", [408, 500, 503, 529])
    async def test_status_that_may_pass_is_unavailability(
        self, new_connection: NewConnection, status: int, *, is_streamed: bool
    ) -> None:
        error = await self.failed(new_connection, HttpError(status, message="Try later."), is_streamed=is_streamed)
        assert isinstance(error, ModelUnavailable)
        assert error.status == status
        assert "Try later." in str(error)

    @both_ways
    @pytest.mark.parametrize("status", [400, 401, 403, 404])
    async def test_status_that_stays_is_a_rejection(
        self, new_connection: NewConnection, status: int, *, is_streamed: bool
    ) -> None:
        error = await self.failed(new_connection, HttpError(status, message="Never."), is_streamed=is_streamed)
        assert type(error) is ModelRejected
        assert error.status == status
        assert "Never." in str(error)

    @both_ways
    @pytest.mark.parametrize("retry_after_s", [None, 7.0])
    async def test_rate_limit_says_how_long_to_wait(
        self, new_connection: NewConnection, retry_after_s: float | None, *, is_streamed: bool
    ) -> None:
        limited = HttpError(429, retry_after_s=retry_after_s)
        error = await self.failed(new_connection, limited, is_streamed=is_streamed)
        assert type(error) is RateLimited
        assert (error.status, error.retry_after_s) == (429, retry_after_s)

    async def test_unavailability_may_say_how_long_to_wait(self, new_connection: NewConnection) -> None:
        error = await self.failed(new_connection, HttpError(503, retry_after_s=3), is_streamed=False)
        assert type(error) is ModelUnavailable
        assert error.retry_after_s == 3

    async def test_wait_may_be_told_in_milliseconds(self, new_connection: NewConnection) -> None:
        if not self.reads_retry_after_ms:
            pytest.skip("the provider does not say it")
        limited = HttpError(429, retry_after_s=2, retry_after_ms=1_250)
        error = await self.failed(new_connection, limited, is_streamed=False)
        assert error.retry_after_s == 1.25

    @both_ways
    async def test_conversation_that_is_too_long_is_told_apart(
        self, new_connection: NewConnection, *, is_streamed: bool
    ) -> None:
        assert type(await self.failed(new_connection, ContextTooLong(), is_streamed=is_streamed)) is TooLong

    @both_ways
    @pytest.mark.parametrize(
        "fault",
        [Dropped(), Cut(reply=_LONG), Cut(after_chunks=3, reply=_LONG), MalformedBody(), StreamFailed(status=500)],
        ids=["dropped", "cut", "cut-later", "malformed", "error-in-stream"],
    )
    async def test_answer_that_does_not_come_whole_is_unavailability(
        self, new_connection: NewConnection, fault: Fault, *, is_streamed: bool
    ) -> None:
        error = await self.failed(new_connection, fault, is_streamed=is_streamed)
        assert isinstance(error, ModelUnavailable)

    async def test_server_that_is_not_there_is_unavailability(self, new_connection: NewConnection) -> None:
        async with served(new_connection, None) as (server, connection):
            await server.close()
            with pytest.raises(ModelUnavailable):
                await connection.complete(self.request())

    @both_ways
    @pytest.mark.parametrize("fault", [Hung(), Stalled(after_chunks=4, reply=_LONG)], ids=["hung", "stalled"])
    async def test_call_that_hangs_can_be_cancelled_and_leaves_no_request_open(
        self, new_connection: NewConnection, fault: Fault, *, is_streamed: bool
    ) -> None:
        arrivals = Arrivals(fault)
        async with served(new_connection, arrivals) as (server, connection):
            waiting = await self.waiting(connection, arrivals, is_stalled=is_streamed and isinstance(fault, Stalled))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await idle(server, connections=0)
            assert server.answered == 0

    async def waiting(
        self, connection: BaseChatModelConnection, arrivals: Arrivals, *, is_stalled: bool
    ) -> asyncio.Task[object]:
        """Return a call that waits for the (rest of the) answer."""
        begun = asyncio.Event()

        def on_delta(_: ChatDelta) -> None:
            begun.set()

        if is_stalled and not connection.can_stream:
            pytest.skip("the adapter does not stream")
        call = asyncio.create_task(connection.complete(self.request(), on_delta if is_stalled else None))
        sign = asyncio.create_task((begun if is_stalled else arrivals.all).wait())
        await asyncio.wait([call, sign], return_when=asyncio.FIRST_COMPLETED)
        assert not call.done(), call
        return call

    @both_ways
    async def test_timeout_of_the_caller_ends_a_call(self, new_connection: NewConnection, *, is_streamed: bool) -> None:
        async with served(new_connection, Hung()) as (server, connection):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ask(connection, self.request(), is_streamed=is_streamed)
            await idle(server)

    async def test_connection_works_on_after_a_call_that_failed(self, new_connection: NewConnection) -> None:
        async with served(new_connection, [Cut(reply=_LONG), HttpError(500), Reply("ok")]) as (_, connection):
            for _ in range(2):
                with pytest.raises(ModelUnavailable):
                    await connection.complete(self.request())
            assert (await connection.complete(self.request())).content == "ok"

    @both_ways
    @pytest.mark.parametrize("is_rejected", [True, False])
    async def test_credential_is_in_no_error_and_no_repr(
        self, new_connection: NewConnection, *, is_rejected: bool, is_streamed: bool
    ) -> None:
        fault = Unauthorized() if is_rejected else HttpError(500, message=f"upstream {self.credential} is down")
        error = await self.failed(new_connection, fault, is_streamed=is_streamed)
        assert type(error) is (ModelRejected if is_rejected else ModelUnavailable)
        shown = [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]
        connection = new_connection("http://127.0.0.1:1")
        assert not [text for text in [*shown, repr(connection), str(connection)] if self.credential in text]

    async def test_error_comes_back_from_its_fields(self, new_connection: NewConnection) -> None:
        error = await self.failed(new_connection, HttpError(429, retry_after_s=7), is_streamed=False)
        fields = msgspec.json.decode(msgspec.json.encode(error.args))
        again = type(error)(*fields)
        assert (str(again), again.retry_after_s, again.model) == (str(error), 7, self.model)
