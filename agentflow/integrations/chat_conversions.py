"""What the adapters of chat models beside it have in common: arguments of tools, ids, turns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from agentflow.api.chat_messages import (
    ChatMessage,
    MessageRole,
    Part,
    TextPart,
    ToolCall,
    Usage,
    arguments_text,
    recordable_arguments,
)
from agentflow.api.chat_models import ChatRequest
from agentflow.api.encoding import check_values

AnswerT = TypeVar("AnswerT")

_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9_-]")
_ID_MAX: Final = 64
_ENFORCED: Final = frozenset(
    {"type", "enum", "const", "required", "description", "title", "additionalProperties", "$ref"}
)
_SCHEMAS_BY_NAME: Final = frozenset({"properties", "$defs"})
_SCHEMA_LISTS: Final = frozenset({"anyOf", "oneOf", "allOf"})
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)


def decoded(body: bytes | str, decoder: msgspec.json.Decoder[AnswerT]) -> AnswerT:
    """Return what a provider has sent; half characters in it, as a model may end with, are no reason to call again.

    Raises:
        msgspec.DecodeError: It is no JSON, or other JSON.
        UnicodeDecodeError: It is no text.
    """
    try:
        return decoder.decode(body)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except msgspec.DecodeError as error:
        try:
            plain = json.loads(body)  # slower, and takes them
        except (ValueError, RecursionError):
            raise error from None
        return msgspec.convert(plain, decoder.type)


def parsed_arguments(text: str) -> dict[str, Any] | str:
    """Return the arguments of a tool call; the text itself where it is no JSON object that can be recorded. No text: no arguments."""
    if not text.strip():
        return {}
    try:
        arguments = msgspec.json.decode(text, type=dict[str, Any])
        check_values(arguments)
    except (ValueError, RecursionError):
        return text
    return arguments


def given_arguments(value: object) -> dict[str, Any] | str:
    """Return the arguments of a tool call where the provider sends them decoded: an object that can be recorded, else a text."""
    return recordable_arguments(value) if isinstance(value, dict) else arguments_text(value)


def sent_arguments(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a tool call for a provider that takes objects only."""
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def call_id(call: ToolCall) -> str:
    """Return by which id call and result find each other at the provider."""
    return plain_id(call.get("original_id") or call.get("id", ""))


def result_id(message: ChatMessage) -> str:
    """Return the id of the call that a message of a tool answers."""
    return plain_id(str(message.extra_args.get("external_id", "")))


def plain_id(text: str) -> str:
    """Return an id as all providers take it. A conversation may come from another provider, whose ids look otherwise."""
    return _NOT_IN_IDS.sub("_", text)[-_ID_MAX:]


def tool_names(messages: Iterable[ChatMessage]) -> dict[str, str]:
    """Return which tool each call of a conversation is for, by the id that its result carries."""
    return {
        call.get("original_id") or call.get("id", ""): call["function"]["name"]
        for message in messages
        for call in message.tool_calls
    }


def parts_of(message: ChatMessage) -> Sequence[Part]:
    """Return the content of a message as parts, but texts that say nothing."""
    return [part for part in message.said if not isinstance(part, TextPart) or part.text]


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
    """Return a JSON schema as Claude is held to it: objects are closed, and what cannot be enforced is said in words."""
    found = {name: schema[name] for name in schema if name in _ENFORCED}
    for name in _SCHEMAS_BY_NAME & schema.keys():
        found[name] = {key: enforced_schema(one) for key, one in schema[name].items()}
    for name in _SCHEMA_LISTS & schema.keys():
        found["anyOf" if name == "oneOf" else name] = [enforced_schema(one) for one in schema[name]]
    if isinstance(items := schema.get("items"), dict):
        found["items"] = enforced_schema(items)
    if schema.get("format") in _FORMATS:
        found["format"] = schema["format"]
    if schema.get("minItems") in {0, 1}:
        found["minItems"] = schema["minItems"]
    if schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
    if words := ", ".join(
        f"{name}: {value}" for name, value in schema.items() if name not in found and name != "oneOf"
    ):
        found["description"] = f"{found.get('description', '')}\n{{{words}}}".lstrip()
    return found
