"""What the adapters of chat models beside it have in common: arguments of tools, ids, turns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from agentflow.api.chat_messages import ChatMessage, MessageRole, Part, TextPart, ToolCall, Usage
from agentflow.api.chat_models import ChatRequest

_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9_-]")
_ID_MAX: Final = 64
_NOT_ENFORCED: Final = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems"}
)


def parsed_arguments(text: str) -> dict[str, Any] | str:
    """Return the arguments of a tool call; the text itself where it is no JSON object. No text: no arguments."""
    if not text.strip():
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return text


def given_arguments(value: object) -> dict[str, Any] | str:
    """Return the arguments of a tool call where the provider sends them decoded: an object, else a text."""
    if isinstance(value, dict):
        return value
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def sent_arguments(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a tool call for a provider that takes objects only."""
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def call_id(call: ToolCall) -> str:
    """Return by which id call and result find each other at the provider."""
    return plain_id(call.get("original_id") or call["id"])


def result_id(message: ChatMessage) -> str:
    """Return the id of the call that a message of a tool answers."""
    return plain_id(str(message.extra_args.get("external_id", "")))


def plain_id(text: str) -> str:
    """Return an id as all providers take it. A conversation may come from another provider, whose ids look otherwise."""
    return _NOT_IN_IDS.sub("_", text)[-_ID_MAX:]


def tool_names(messages: Iterable[ChatMessage]) -> dict[str, str]:
    """Return which tool each call of a conversation is for, by the id that its result carries."""
    return {
        call.get("original_id") or call["id"]: call["function"]["name"]
        for message in messages
        for call in message.tool_calls
    }


def parts_of(message: ChatMessage) -> Sequence[Part]:
    """Return the content of a message as parts, but texts that say nothing."""
    parts = message.parts or [TextPart(message.content)]
    return [part for part in parts if not isinstance(part, TextPart) or part.text]


def conversation(request: ChatRequest) -> tuple[list[ChatMessage], list[ChatMessage]]:
    """Return the instructions of a request, and its conversation: for providers that want them apart."""
    system = [message for message in request.messages if message.role == MessageRole.SYSTEM]
    return system, [message for message in request.messages if message.role != MessageRole.SYSTEM]


def add_turn(turns: list[dict[str, Any]], role: str, field: str, content: list[Any]) -> None:
    """Add what is said to a conversation whose roles alternate: as part of the last turn, if the same one speaks."""
    if not content:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1][field] += content
    else:
        turns.append({"role": role, field: content})


def told_usage(model: str, usage: Usage) -> dict[str, Any]:
    """Return what `ChatMessage.extra_args` says of a call, by the names of Flink Agents."""
    return {"model_name": model, "promptTokens": usage.input_tokens, "completionTokens": usage.output_tokens}


def enforced_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema as Claude is held to it: objects are closed, and limits of values are only said in words."""
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in {"properties", "$defs"}:
            found[name] = {key: enforced_schema(one) for key, one in value.items()}
        elif name in {"anyOf", "oneOf", "allOf"}:
            found["allOf" if name == "allOf" else "anyOf"] = [enforced_schema(one) for one in value]
        elif name == "items" and isinstance(value, dict):
            found[name] = enforced_schema(value)
        elif name not in _NOT_ENFORCED and not (name == "minItems" and value > 1):
            found[name] = value
    if unsaid := {name: value for name, value in schema.items() if name not in found and name != "oneOf"}:
        words = ", ".join(f"{name}: {value}" for name, value in unsaid.items())
        found["description"] = f"{found.get('description', '')}\n{{{words}}}".lstrip()
    if schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found
