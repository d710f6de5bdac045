"""A call of a model as it is made, inside of a durable step: budgets, the gate, timeouts, the stream, the connection.

Nothing of this runs when the step is answered from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from agentflow.actions.budgets import Meter
from agentflow.actions.call_reports import ModelCallReport
from agentflow.actions.policies import ChatPolicy
from agentflow.actions.recordable_answers import recordable
from agentflow.actions.server_offers import ServerOffers
from agentflow.actions.structured_output import asks_natively, output_instruction
from agentflow.actions.tool_lists import tools_of
from agentflow.actions.traffic import Gate
from agentflow.api.chat_history import estimated_tokens
from agentflow.api.chat_messages import ChatMessage, MessageRole, ToolCall, Usage
from agentflow.api.chat_models import (
    BaseChatModelConnection,
    BaseChatModelSetup,
    ChatDelta,
    ChatRequest,
    DeltaKind,
    OnDelta,
    without_empty,
)
from agentflow.api.encoding import encodable_text, text_of
from agentflow.api.executions import ModelCall
from agentflow.api.prompts import Prompt
from agentflow.api.resources import ResourceType
from agentflow.api.runner_context import RunnerContext
from agentflow.errors import (
    AgentflowError,
    CircuitOpen,
    ConfigError,
    ContentRefused,
    ModelError,
    ModelUnavailable,
    RateLimited,
    ToolServerUnavailable,
)

if TYPE_CHECKING:
    from agentflow.actions.model_calls import ChatTurn

_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 20.0
_ANSWER_TOKENS = 512  # what an answer is taken to have where nothing limits it


class StreamTarget(Protocol):
    """Where the tokens of an answer go as they come."""

    def begin_attempt(self, attempt: int) -> None:
        """Say that a call begins: what came of earlier ones is void."""
        ...

    def write(self, delta: ChatDelta) -> None:
        """Take a piece of the answer."""
        ...


class ModelRequest:
    """Calls a chat model for one turn.

    Args:
        ctx: Context of the task.
        setup: The chat model.
        policy: How it is called.
        turn: What is asked.
        meter: Its budgets.
        has_fallback: Another model can be asked, so a connection that is known to fail is not waited for.

    Raises:
        ConfigError: It has no model, or the connection cannot be made, or has no native structured output for the schema where the setup
            insists on it.

    Attributes:
        key: Idempotency key of the first call, in retries of it; empty: that of the step.
        is_made: Whether `call` was called; else the step is answered from the journal.
    """

    def __init__(
        self,
        ctx: RunnerContext,
        setup: BaseChatModelSetup,
        policy: ChatPolicy,
        turn: ChatTurn,
        meter: Meter,
        *,
        has_fallback: bool,
    ) -> None:
        self._ctx = ctx
        self._setup = setup
        self._policy = policy
        self._turn = turn
        self._meter = meter
        self._has_fallback = has_fallback
        self._prompt_digest = ""
        self._connection = setup.get_connection()  # here: what is wrong with it is no outcome that is to be recorded
        if self._connection.provider and not (
            setup.model or setup.model_kwargs.get("model")
        ):  # one of one's own may know
            raise ConfigError([f"chat model '{setup.name}' has no model\nhelp: model='…', as its provider has it"])
        self._is_native = turn.output_schema is not None and asks_natively(setup, self._connection, turn.output_schema)
        self.key = ""
        self.is_made = False

    async def make_ready(self) -> None:
        """Open the connection ahead of a call, which is in doubt from its beginning: opening may take seconds, and calls nobody."""
        with contextlib.suppress(Exception):  # the call finds it out for itself, and says so
            await self._setup
            await self._connection

    async def call(self, model: str, messages: Sequence[ChatMessage], attempt: int) -> ChatMessage:  # noqa: ARG002 (they are in the digest)
        """Call the model once, and, where calls are not counted, again while the provider says that there are too many.

        Args:
            model: Name of the setup.
            messages: The conversation.
            attempt: Number of the call, from 1.

        Raises:
            ModelError: By its kind, with the idempotency key, and without secrets.
            BudgetExhausted: The call would spend more than there is; it was not made.
        """
        self.is_made = True
        idempotency_key = self.key or self._ctx.idempotency_key
        setup, connection = self._setup, self._connection
        try:
            request = await self._request(idempotency_key)
            prompt, expected = self._estimates(request)
            await self._meter.reserve(prompt, expected)
            answer = await self._within_limits(connection, request, attempt, tokens=prompt[1] + expected[1])
            return self._finished(answer, idempotency_key)
        except ToolServerUnavailable as error:  # not the provider's: it was not called, for it would not know its tools
            what = f"chat model '{setup.name}' was not called: {error.what}"
            raise ModelUnavailable(what, "", "", None, None, idempotency_key) from None
        except ModelError as error:
            model = error.model or setup.model
            kept = (error.provider, model, error.status, error.retry_after_s, idempotency_key)
            raise type(error)(error.what, *kept) from None

    async def _request(self, idempotency_key: str) -> ChatRequest:
        setup, turn = self._setup, self._turn
        prompt, digest = await _prompt_of(self._ctx, setup, turn.prompt_args)
        messages = without_empty([*prompt, *turn.messages])
        schema = turn.output_schema
        if schema is not None and not self._is_native:
            messages = output_instruction(messages, schema)
            schema = None
        self._prompt_digest = digest
        request = setup.asked_of(messages)
        request.tools = [tool.metadata for tool in await tools_of(self._ctx, setup, turn.tools)]
        request.output_schema = schema
        request.idempotency_key = idempotency_key
        return request

    def _estimates(self, request: ChatRequest) -> tuple[list[float], list[float]]:
        """Return what a call is taken to cost, before it is made: with its prompt alone, and what the answer adds."""
        if not (self._policy.limits or self._meter.has_budgets):
            return [1, 0, 0.0], [0, 0, 0.0]  # nobody asks
        tokens, most = sum(map(estimated_tokens, request.messages)), request.options.get("max_tokens") or _ANSWER_TOKENS
        cost = self._policy.cost
        return [1, tokens, cost(Usage(tokens))], [0, most, cost(Usage(0, most))]

    async def _within_limits(
        self, connection: BaseChatModelConnection, request: ChatRequest, attempt: int, *, tokens: float
    ) -> ChatMessage:
        """Call when the gate lets it; while the provider refuses for its own limits, again. It is taken to cost ``tokens``."""
        ctx, setup, policy, turn = self._ctx, self._setup, self._policy, self._turn
        gate = ctx.resources.traffic.gate(connection, policy.breaker_failures, policy.breaker_open_s)
        now = asyncio.get_running_loop().time
        give_up_at = now() + policy.rate_limit_wait_s
        refusals = 0
        while True:
            if self._has_fallback:
                self._check_open(gate, connection)
            place = (setup.model, turn.tenant, str(ctx.key), policy.limits, tokens)
            admission = await gate.enter(*place, can_go_elsewhere=self._has_fallback)
            if admission is None:
                continue
            used, is_answered, is_failed, closed_s = 0.0, False, False, None
            try:
                answer = await self._timed(connection, request, attempt + refusals, admission.waited_s)
                usage = answer.usage or Usage()
                used, is_answered = usage.input_tokens + usage.output_tokens, True
                return answer
            except RateLimited as error:
                refusals += 1
                closed_s, is_answered = error.retry_after_s, True
                wait_s = 0.0 if closed_s else refusal_wait_s(refusals)
                is_too_long = now() + (closed_s or wait_s) > give_up_at
                closed_s = None if closed_s is None else min(closed_s, policy.rate_limit_wait_s)
                if self._has_fallback or self._meter.counts_calls or is_too_long:
                    raise
            except ModelUnavailable:
                is_failed = True
                raise
            except ModelError:
                is_answered = True
                raise
            finally:
                gate.leave(admission, tokens=used, is_failed=is_failed, is_answered=is_answered, closed_s=closed_s)
            if wait_s:
                await asyncio.sleep(wait_s * random.uniform(0.8, 1))  # noqa: S311 (no record depends on it)

    def _check_open(self, gate: Gate, connection: BaseChatModelConnection) -> None:
        """Look whether it is known that a call would have to wait for the provider, where another model can be asked.

        Raises:
            CircuitOpen: The connection has failed too often.
            RateLimited: The provider has said when it takes calls again.
        """
        setup, policy = self._setup, self._policy
        if (open_s := gate.retry_after_s()) > 0:
            what = f"connection '{setup.connection}' has failed {policy.breaker_failures} times in a row: its circuit is open"
            raise CircuitOpen(what, connection.provider, setup.model, retry_after_s=open_s)
        if (closed_s := gate.closed_s(setup.model, self._turn.tenant, policy.limits)) > 0:
            what = f"the provider of connection '{setup.connection}' has had too many calls: none is made before it takes them again"
            raise RateLimited(what, connection.provider, setup.model, retry_after_s=closed_s)

    async def _timed(
        self, connection: BaseChatModelConnection, request: ChatRequest, attempt: int, waited_s: float
    ) -> ChatMessage:
        """Call once, within the timeouts; report it, where somebody looks."""
        policy = self._policy
        pieces = _Pieces(policy, self._turn.stream, attempt, self._ctx) if self._wants_pieces(connection) else None
        if not self._ctx.is_observed:
            return await self._told(connection, request, pieces, attempt)
        known = ModelCall(
            attempt=attempt, limit_wait_s=waited_s, is_streamed=pieces is not None, prompt=self._prompt_digest
        )
        report = ModelCallReport(self._ctx, self._setup.name, connection, request, known)
        try:
            answer = await self._told(connection, request, pieces, attempt)
        except ModelError as error:
            report.fail(error)
            raise
        cost = None if policy.price is None else policy.cost(answer.usage or Usage())
        report.succeed(answer, None if pieces is None else pieces.first_at, cost)
        return answer

    async def _told(
        self, connection: BaseChatModelConnection, request: ChatRequest, pieces: _Pieces | None, attempt: int
    ) -> ChatMessage:
        """Call once; a stream is told the answer of a connection that cannot stream at once."""
        answer = await self._complete(connection, request, pieces)
        if pieces is not None:
            pieces.end()
        elif (stream := self._turn.stream) is not None:
            stream.begin_attempt(attempt)
            stream.write(ChatDelta(answer.text))
        return answer

    def _wants_pieces(self, connection: BaseChatModelConnection) -> bool:
        policy = self._policy
        has_limits = policy.first_token_timeout_s is not None or policy.idle_timeout_s is not None
        return connection.can_stream and (has_limits or self._turn.stream is not None)

    async def _complete(
        self, connection: BaseChatModelConnection, request: ChatRequest, pieces: _Pieces | None
    ) -> ChatMessage:
        policy, scrub = self._policy, self._ctx.resources.scrub
        limit_s = policy.timeout_s
        if pieces is not None and policy.first_token_timeout_s is not None:
            limit_s = min(limit_s, policy.first_token_timeout_s)
        timeout = asyncio.timeout(limit_s)
        if pieces is not None:
            pieces.begin(timeout)
        try:
            async with timeout:
                await self._setup
                await connection
                if connection.has_chat_alone:
                    answer = await connection.complete_by_chat(request, self._ctx._services.in_thread)  # noqa: SLF001 (the context's engine side)
                else:
                    answer = await connection.complete(request, None if pieces is None else pieces.take)
                return self._without_secrets(recordable(answer))
        except ModelError as error:  # what the provider says may show what it was called with
            kept = (
                error.provider or connection.provider,
                error.model or request.model,
                error.status,
                error.retry_after_s,
            )
            raise type(error)(encodable_text(scrub(error.what)), *kept) from None
        except AgentflowError:
            raise
        except Exception as error:  # noqa: BLE001 (a connection of the user's own: whatever it raises may pass)
            what = scrub(f"{type(error).__name__}: {text_of(error)}")
            if timeout.expired():
                what = f"{'the call' if pieces is None else pieces.which} took longer than its timeout"
            raise ModelUnavailable(what, connection.provider, request.model) from None

    def _finished(self, answer: ChatMessage, idempotency_key: str) -> ChatMessage:
        """Return the answer as it is recorded: its cost, ids of its tool calls.

        Raises:
            ContentRefused: The provider has filtered it, and nothing is left.
        """
        if answer.finish_reason == "content_filter" and answer.is_empty:
            raise ContentRefused("the provider has filtered the answer", "", self._setup.model)
        extra = dict(answer.extra_args)
        extra.setdefault("model_name", self._setup.model)
        if self._prompt_digest:
            extra["prompt"] = self._prompt_digest
        if answer.usage is not None:
            extra.setdefault("promptTokens", answer.usage.input_tokens)
            extra.setdefault("completionTokens", answer.usage.output_tokens)
            if self._policy.price is not None:
                extra["cost"] = self._policy.cost(answer.usage)
        calls = [
            {
                **call,
                "id": f"call_{idempotency_key[:16]}_{place}",
                "original_id": _original_id(call, idempotency_key, place),
            }
            for place, call in enumerate(answer.tool_calls)
        ]
        return msgspec.structs.replace(answer, extra_args=extra, tool_calls=calls)

    def _without_secrets(self, answer: ChatMessage) -> ChatMessage:
        """Return an answer as it may be recorded, reported and read: what a connection was made with is not in it."""
        if not self._ctx.resources.has_secrets:
            return answer
        plain = msgspec.to_builtins(answer, builtin_types=(bytes,))
        return msgspec.convert(_scrubbed(plain, self._ctx.resources.scrub), ChatMessage)


def _original_id(call: ToolCall, idempotency_key: str, place: int) -> str:
    """Return the id by which the provider knows a tool call; some have none."""
    return call.get("original_id") or call.get("id") or f"call_{idempotency_key[:16]}_{place}"


def _scrubbed(value: Any, scrub: Callable[[str], str]) -> Any:  # noqa: ANN401 (plain values)
    """Return plain values without secrets in their texts."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [_scrubbed(one, scrub) for one in value]
    return {name: _scrubbed(one, scrub) for name, one in value.items()} if isinstance(value, dict) else value


def refusal_wait_s(refusals: int) -> float:
    """Return how long to wait behind so many refusals of a provider that does not say it."""
    return float(min(_BACKOFF_S * 2.0 ** min(refusals - 1, 16), _BACKOFF_MAX_S))


class _Pieces:
    """Takes the pieces of an answer: moves the deadline, and hands them on."""

    def __init__(self, policy: ChatPolicy, stream: StreamTarget | None, attempt: int, ctx: RunnerContext) -> None:
        self._policy = policy
        self._resources = ctx.resources
        self._scrubbers: dict[tuple[DeltaKind, int], Any] = {}
        self._stream = stream
        self._attempt = attempt
        self._loop = asyncio.get_running_loop()
        self._timeout: asyncio.Timeout | None = None
        self._end_at = 0.0
        self.first_at: float | None = None
        has_limit = policy.first_token_timeout_s is not None and policy.first_token_timeout_s < policy.timeout_s
        self.which = "the first piece of the answer" if has_limit else "the call"

    @property
    def take(self) -> OnDelta:
        """What the connection calls with each piece."""
        return self._take

    def begin(self, timeout: asyncio.Timeout) -> None:
        """Begin a call."""
        self._timeout = timeout
        self._end_at = self._loop.time() + self._policy.timeout_s
        if self._stream is not None:
            self._stream.begin_attempt(self._attempt)

    def _take(self, delta: ChatDelta) -> None:
        assert self._timeout is not None, "the call has begun"
        if self._timeout.expired():
            return
        if self.first_at is None:
            self.first_at = time.monotonic()
        idle_s = self._policy.idle_timeout_s
        idle_at = self._end_at if idle_s is None else self._loop.time() + idle_s
        self.which = "the next piece of the answer" if idle_at < self._end_at else "the call"
        self._timeout.reschedule(min(self._end_at, idle_at))
        if self._stream is None:
            return
        if self._resources.has_secrets:
            place = delta.kind, delta.index
            if (scrubber := self._scrubbers.get(place)) is None:
                scrubber = self._scrubbers[place] = self._resources.stream_scrubber()
            delta = msgspec.structs.replace(delta, text=scrubber.take(delta.text))
            if not (delta.text or delta.name):
                return
        self._stream.write(delta)

    def end(self) -> None:
        """Hand on what was held back."""
        for (kind, index), scrubber in self._scrubbers.items():
            if self._stream is not None and (rest := scrubber.rest()):
                self._stream.write(ChatDelta(rest, kind, index))


async def _prompt_of(
    ctx: RunnerContext, setup: BaseChatModelSetup, prompt_args: dict[str, Any]
) -> tuple[list[ChatMessage], str]:
    """Return the messages of a chat model's prompt, and its hash; of an MCP server too."""
    prompt = setup.prompt
    if prompt is None:
        return [], ""
    if isinstance(prompt, str):
        resources = ctx.resources
        if prompt not in resources.names(ResourceType.PROMPT):
            served = await ServerOffers(resources).prompt(prompt, prompt_args)
            if served is not None:
                return served
        prompt = resources.get_resource(prompt, ResourceType.PROMPT)
    assert isinstance(prompt, Prompt), "a resource of this type"
    return prompt.messages_of(MessageRole.SYSTEM, prompt_args), prompt.digest
