"""The built-in actions: they answer requests for models and tools. A plan has them where its agent has models or tools.

    ChatRequestEvent ─► chat_model_action ─► ChatResponseEvent            the model has answered
                              ▲   └────────► ToolRequestEvent             it wants tools
    ToolResponseEvent ────────┘                 └─► tool_call_action ─► ToolResponseEvent

An agent's own action of the same name takes the place of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agentflow.actions.chat_loop import one_answer, turns_max
from agentflow.actions.conversations import Conversation
from agentflow.actions.model_calls import ChatTurn, Retries, setup_of
from agentflow.actions.policies import chat_policy
from agentflow.actions.tool_calls import outcomes_of
from agentflow.api.chat_events import (
    BudgetExhaustedEvent,
    ChatResponseEvent,
    ToolRequestEvent,
    ToolResponseEvent,
)
from agentflow.api.chat_messages import ChatMessage, MessageRole, read_messages
from agentflow.api.chat_models import ErrorHandlingStrategy
from agentflow.api.decorators import ActionDeclaration
from agentflow.api.events import Event, EventType
from agentflow.api.failure import Retry
from agentflow.api.runner_context import RunnerContext
from agentflow.errors import BudgetExhausted, ModelError, OutputInvalid


async def chat_model_action(event: Event, ctx: RunnerContext) -> None:
    """Ask a model, or go on with its conversation when its tools have answered."""
    await take_turn(event, ctx)


async def take_turn(event: Event, ctx: RunnerContext, output_type: Any = None) -> None:  # noqa: ANN401 (a type)
    """Do as `chat_model_action`; an answer that ``output_type`` refuses goes back to the model too, though its schema does not."""
    if event.type == EventType.ChatRequestEvent:
        request_id = str(event.id)
        conversation = Conversation(ctx, request_id)
        request = {name: value for name, value in event.attributes.items() if name != "messages"}
        kept: list[ChatMessage] = []
        new = read_messages(event.attributes["messages"])
        request["history"] = len(new)
    else:
        known = Conversation.of_tools(ctx, event.attributes["request_id"])
        if known is None:
            return  # somebody else has asked for these tools
        request_id, conversation = known
        request, kept, new = conversation.request, conversation.read(), _tool_messages(event)
    await _ask(ctx, request_id, conversation, request, kept, new, output_type)


async def _ask(
    ctx: RunnerContext,
    request_id: str,
    conversation: Conversation,
    request: dict[str, Any],
    kept: list[ChatMessage],
    new: list[ChatMessage],
    output_type: Any,  # noqa: ANN401 (a type)
) -> None:
    """Ask the model once, and send what follows."""
    model, output, messages = request["model"], request.get("output_schema"), [*kept, *new]
    retries = conversation.retries if kept else Retries()
    try:
        turns = sum(message.role == MessageRole.ASSISTANT for message in messages[request["history"] :])
        if turns >= (most := turns_max(ctx, model, request.get("max_turns"))):
            raise BudgetExhausted("run.turns", most, turns)
        turn = ChatTurn(
            model=model,
            messages=tuple(messages),
            prompt_args=request.get("prompt_args") or {},
            tools=request.get("tools", ()),
            output_schema=output,
            tenant=request.get("tenant", ""),
            stream=None if request.get("stream") is None else ctx.stream(request["stream"]),
        )
        answer = await one_answer(ctx, turn, output, retries, output_type)
    except BudgetExhausted as exhausted:
        _exhausted(ctx, request_id, messages, exhausted)
        conversation.end()
        return
    except (ModelError, OutputInvalid) as error:
        if chat_policy(setup_of(ctx, model), ctx.config).strategy is not ErrorHandlingStrategy.IGNORE:
            raise
        nothing = ChatMessage(MessageRole.ASSISTANT, getattr(error, "answer", ""))
        response = ChatResponseEvent(request_id, nothing, retries.count, retries.wait_s, error=error.what)
        ctx.send_event(response)
        conversation.end()
        return
    if not answer.tool_calls:
        ctx.send_event(ChatResponseEvent(request_id, answer, retries.count, retries.wait_s))
        conversation.end()
        return
    conversation.append(request if not kept else None, [*new, answer], retries)
    wanted = ToolRequestEvent(model, answer.tool_calls, request_id)
    ctx.send_event(wanted)
    conversation.wants_tools(str(wanted.id), request_id)


async def tool_call_action(event: Event, ctx: RunnerContext) -> None:
    """Call tools, all at the same time, and say what came of it."""
    calls, setup = event.attributes["tool_calls"], setup_of(ctx, event.attributes["model"])
    asked = Conversation.of_tools(ctx, str(event.id))
    more = () if asked is None else asked[1].request.get("tools", ())
    outcomes = await outcomes_of(ctx, setup, calls, more)
    by_id = {call["id"]: outcome for call, outcome in zip(calls, outcomes, strict=True)}
    response = ToolResponseEvent(
        str(event.id),
        {name: outcome.text for name, outcome in by_id.items()},
        {call["id"]: call["original_id"] for call in calls if call.get("original_id")},
        {name: not outcome.error for name, outcome in by_id.items()},
        {name: outcome.error for name, outcome in by_id.items() if outcome.error},
    )
    ctx.send_event(response)


def _tool_messages(event: Event) -> list[ChatMessage]:
    """Return what tools have said, as messages."""
    external = event.attributes.get("external_ids") or {}
    return [
        ChatMessage(MessageRole.TOOL, str(text), extra_args={"external_id": external.get(name) or name})
        for name, text in event.attributes["responses"].items()
    ]


def _exhausted(ctx: RunnerContext, request_id: str, messages: list[ChatMessage], exhausted: BudgetExhausted) -> None:
    """Tell the agent that a budget is spent; where nobody listens, the run fails."""
    if EventType.BudgetExhaustedEvent not in ctx.resources.listens:
        raise exhausted
    partial = next((one for one in reversed(messages) if one.role == MessageRole.ASSISTANT), None)
    ctx.send_event(BudgetExhaustedEvent(request_id, exhausted.budget, exhausted.limit, exhausted.spent, partial))


CHAT_MODEL_ACTION: Final = ActionDeclaration(
    (EventType.ChatRequestEvent, EventType.ToolResponseEvent), parallel=True, retry=Retry(attempts=1)
)
"""Of `chat_model_action`, and of what takes its place."""
BUILT_IN_ACTIONS: Final[tuple[tuple[str, ActionDeclaration, Callable[..., Any]], ...]] = (
    ("chat_model_action", CHAT_MODEL_ACTION, chat_model_action),
    (
        "tool_call_action",
        ActionDeclaration((EventType.ToolRequestEvent,), parallel=True, retry=Retry(attempts=1)),
        tool_call_action,
    ),
)
"""In the order in which a plan declares them, behind the agent's own."""
