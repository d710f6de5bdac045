"""A conversation with a model until it answers: turns of calls and tools, structured output, the cap of turns.

`chat` is `RunnerContext.chat`: the whole loop within one action. The built-in actions make one turn per task (`one_answer`), so that
each is an event others can see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentflow.actions.budgets import turns_within
from agentflow.actions.model_calls import ChatTurn, Retries, answer_of, setup_of
from agentflow.actions.model_requests import StreamTarget
from agentflow.actions.policies import chat_policy
from agentflow.actions.structured_output import correction, with_output
from agentflow.actions.tool_calls import outcomes_of
from agentflow.actions.tool_lists import check_tools
from agentflow.api.chat_events import check_request
from agentflow.api.chat_history import ChatHistory
from agentflow.api.chat_messages import ChatMessage, read_messages, tool_message
from agentflow.api.executions import ExecutionEntityTypes, ExecutionProblemCategories
from agentflow.api.output_schemas import schema_of
from agentflow.api.runner_context import RunnerContext
from agentflow.errors import BudgetExhausted, OutputInvalid


async def chat(
    ctx: RunnerContext,
    model: str,
    messages: Sequence[ChatMessage | str] | ChatMessage | str,
    *,
    prompt_args: Mapping[str, Any] | None = None,
    output: Any = None,  # noqa: ANN401 (a type or a schema)
    tools: Sequence[Any] = (),
    stream: StreamTarget | None = None,
    max_turns: int | None = None,
    tenant: str = "",
    history: ChatHistory | str | None = None,
) -> ChatMessage:
    """Ask a model; see `RunnerContext.chat`."""
    check_request(tools, max_turns)
    kept = ctx.chat_history(history) if isinstance(history, str) else history
    if not isinstance(kept, ChatHistory | None):
        raise TypeError(
            f"history is the name of a conversation, or ctx.chat_history(…), not {history!r}; messages are `messages`"
        )
    if not isinstance(prompt_args, Mapping | None):
        raise TypeError(f"prompt_args is a mapping of placeholders to their values, not {prompt_args!r}")
    conversation = [] if kept is None else kept.messages()
    known = len(conversation)
    conversation += read_messages(messages)
    turns_most = turns_max(ctx, model, max_turns)
    retries = Retries()
    asked = ChatTurn(
        model=model,
        messages=(),
        prompt_args=dict(prompt_args or {}),
        tools=tools,
        output_schema=None if output is None else schema_of(output),
        tenant=tenant,
        stream=stream,
    )
    for _ in range(turns_most):
        turn = msgspec.structs.replace(asked, messages=tuple(conversation))
        answer = await one_answer(ctx, turn, output, retries)
        if not answer.tool_calls:
            if kept is not None:
                kept.append(*conversation[known:], answer)
            return answer
        setup = setup_of(ctx, model)
        outcomes = await outcomes_of(ctx, setup, answer.tool_calls, tools)
        conversation.append(answer)
        conversation += [
            tool_message(call, outcome.text) for call, outcome in zip(answer.tool_calls, outcomes, strict=True)
        ]
    raise BudgetExhausted("run.turns", turns_most, turns_most)


def turns_max(ctx: RunnerContext, model: str, most: int | None = None) -> int:
    """Return the most turns that a tool loop of a model may have."""
    policy = chat_policy(setup_of(ctx, model), ctx.config)
    return turns_within(policy.budgets, policy.turns_max if most is None else most)


async def one_answer(
    ctx: RunnerContext,
    turn: ChatTurn,
    output: Any,  # noqa: ANN401 (a type or a schema)
    retries: Retries,
    output_type: Any = None,  # noqa: ANN401 (a type)
) -> ChatMessage:
    """Return a model's next answer, one that fits ``output`` unless it calls tools.

    An answer that does not fit goes back to the model with the reason, up to ``max-retries`` times.

    Args:
        ctx: Context of the task.
        turn: What the model is asked.
        output: What the answer is read as; None: it stays a text.
        retries: Counts the calls that are made again.
        output_type: What must be possible to make of it then, where ``output`` is the schema of a type that may refuse more.

    Raises:
        OutputInvalid: The last one does not fit either.
        ModelError, BudgetExhausted: As `answer_of`.
        ValueError: There is nothing to ask.
        ConfigError: Two of the tools have one name.
    """
    setup = setup_of(ctx, turn.model)
    if setup.prompt is None and all(message.is_empty for message in turn.messages):
        raise ValueError(
            f"chat model '{turn.model}' has no prompt, and no message says anything: there is nothing to ask it"
        )
    check_tools(ctx, setup, turn.tools)
    policy = chat_policy(setup, ctx.config)
    corrections = 0
    messages = turn.messages
    while True:
        asked = msgspec.structs.replace(turn, messages=messages)
        answer = await answer_of(ctx, asked, retries)
        if output is None or answer.tool_calls:
            return answer
        try:
            return with_output(answer, output, output_type)
        except ValueError as error:
            why = str(error)
        if corrections >= policy.attempts_max - 1:
            failure = OutputInvalid(why, answer.text)
            category = ExecutionProblemCategories.MODEL_OUTPUT_PARSE_ERROR
            ctx.report_execution_failed(ExecutionEntityTypes.PARSER, turn.model, None, failure, category)
            raise failure
        corrections += 1
        retries.count += 1
        messages = (*messages, answer, correction(why))
