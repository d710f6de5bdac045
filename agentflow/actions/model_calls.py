"""One answer of a model: a durable step for each call, retries, fallback models.

    call ── answered ─────────────────────────────► the answer
         ── it may pass (5xx, timeout, cut) ──────► wait (durable), call again, up to max-retries
         ── too many (429) ───────────────────────► a fallback model at once; without one the lane waits, the same step calls again; where
                                                calls are counted: wait (durable), and another step
         ── the circuit is open ──────────────────► a fallback model at once; without one the lane waits
         ── it will not pass, or no retry is left ► fallback model, or the error
         ── cancelled by the action ──────────────► it counts as one
         ── in doubt, where calls are counted ────► it counts as one; another one is made

A call that is recorded is not made again, whatever became of the process. The idempotency key of a call goes along with its retries.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from agentflow.actions.budgets import IN_DOUBT, Meter, cost_of
from agentflow.actions.model_requests import ModelRequest, StreamTarget, refusal_wait_s
from agentflow.actions.policies import ChatPolicy, chat_policy, check_prices
from agentflow.api.budgets import Budget
from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import BaseChatModelSetup, ErrorHandlingStrategy
from agentflow.api.resources import ResourceType
from agentflow.api.runner_context import RunnerContext
from agentflow.api.steps import Done, StepIntent, reconcile
from agentflow.errors import CircuitOpen, ModelError, ModelRejected, RateLimited

_WAIT_MAX_S = 60.0


class ChatTurn(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a model in one turn.

    Attributes:
        model: Name of the chat model.
        messages: The conversation, without the model's prompt.
        prompt_args: Values for its placeholders.
        tools: Names of tools that may be called beside those of the model.
        output_schema: JSON schema of the answer; None: any text.
        tenant: Whose rate limits count.
        stream: Where tokens go as they come; None: nowhere.
    """

    model: str
    messages: Sequence[ChatMessage]
    prompt_args: dict[str, Any] = {}
    tools: Sequence[Any] = ()
    output_schema: dict[str, Any] | None = None
    tenant: str = ""
    stream: StreamTarget | None = None


class Retries(msgspec.Struct):
    """Calls that were made again, for one request.

    Attributes:
        count: How many.
        wait_s: Seconds waited for that.
    """

    count: int = 0
    wait_s: float = 0.0


async def answer_of(ctx: RunnerContext, turn: ChatTurn, retries: Retries) -> ChatMessage:
    """Return a model's answer; its cost is counted.

    Raises:
        ModelError: No call, and no fallback, has led to one.
        BudgetExhausted: A call would spend more than there is.
    """
    setup = setup_of(ctx, turn.model)
    policy = chat_policy(setup, ctx.config)
    budgets: list[Budget] = []  # of all that were asked: who falls back spends what the first one may
    falls_back = policy.strategy is ErrorHandlingStrategy.FALLBACK
    rest = [setup_of(ctx, name) for name in setup.fallback_models] if falls_back else []
    check_prices([setup, *rest], ctx.config)
    while True:
        budgets += [budget for budget in chat_policy(setup, ctx.config).budgets if budget not in budgets]
        try:
            return await _with_retries(ctx, turn, setup, budgets, retries, has_fallback=bool(rest))
        except ModelError:
            if not rest:
                raise
            setup = rest.pop(0)


def setup_of(ctx: RunnerContext, model: str) -> BaseChatModelSetup:
    """Return the setup of a chat model."""
    setup: BaseChatModelSetup = ctx.get_resource(model, ResourceType.CHAT_MODEL)
    return setup


async def _with_retries(
    ctx: RunnerContext,
    turn: ChatTurn,
    setup: BaseChatModelSetup,
    budgets: Sequence[Budget],
    retries: Retries,
    *,
    has_fallback: bool,
) -> ChatMessage:
    policy = chat_policy(setup, ctx.config)
    meter = Meter(ctx, budgets, setup.name)
    request = ModelRequest(ctx, setup, policy, turn, meter, has_fallback=has_fallback)
    on_in_doubt: Any = reconcile(_in_doubt) if meter.counts_calls else "retry"
    attempt, failures, refusals, refused_s = 1, 0, 0, 0.0
    if meter.counts_calls:
        await request.make_ready()
    while True:
        request.is_made = False
        try:
            answer: ChatMessage = await ctx.durable_execute_async(
                request.call,
                setup.name,
                turn.messages,
                attempt,
                name=f"chat:{setup.name}",
                on_in_doubt=on_in_doubt,
            )
        except ModelError as error:
            failure = error
            if not isinstance(failure, CircuitOpen):
                meter.count([1, 0, 0.0], is_recorded=not request.is_made)
        except asyncio.CancelledError:  # by the action: perhaps the provider answers all the same
            meter.count([1, 0, 0.0], is_recorded=not request.is_made)
            raise
        else:
            meter.count(cost_of(answer), is_recorded=not request.is_made)
            if answer.finish_reason != IN_DOUBT:
                return answer
            attempt, request.key = attempt + 1, answer.extra_args["idempotency_key"]
            continue
        finally:
            meter.release()
        if isinstance(failure, RateLimited) and meter.counts_calls and not has_fallback:
            refusals += 1
            wait_s = failure.retry_after_s or refusal_wait_s(refusals)
            refused_s += wait_s
            if refused_s > policy.rate_limit_wait_s:
                raise failure
        else:
            failures += 1
            if failures >= policy.attempts_max or not _may_pass(failure, policy):
                raise failure
            wait_s = _wait_s(policy, failures, failure, ctx)
            retries.count += 1
            retries.wait_s += wait_s
        attempt, request.key = attempt + 1, failure.idempotency_key
        await ctx.sleep(f"{round(wait_s * 1000)}ms")


def _may_pass(failure: ModelError, policy: ChatPolicy) -> bool:
    """Whether to call again: limits of the provider were waited for already, as long as that is allowed."""
    if isinstance(failure, (ModelRejected, RateLimited, CircuitOpen)):
        return False
    return (failure.retry_after_s or 0.0) <= policy.rate_limit_wait_s


def _in_doubt(intent: StepIntent) -> Done:
    """Let a call that may have been made count as one, where calls are counted: the next one is another call."""
    return Done(ChatMessage(finish_reason=IN_DOUBT, extra_args={"idempotency_key": intent.idempotency_key}))


def _wait_s(policy: ChatPolicy, attempt: int, failure: ModelError, ctx: RunnerContext) -> float:
    """Return the wait before the next call: what the provider says, else twice as long each time, less up to a fifth."""
    if failure.retry_after_s is not None:
        return failure.retry_after_s
    jitter = zlib.crc32(f"{ctx.task_id}#{attempt}#{failure.idempotency_key}".encode()) / 2**32
    wait_s = policy.retry_wait_s * 2.0 ** min(attempt - 1, 32)
    return float(min(wait_s, max(_WAIT_MAX_S, policy.retry_wait_s)) * (1 - 0.2 * jitter))
