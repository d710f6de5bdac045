"""Answers by a schema: asked for natively or by an instruction, read, and what a model is told when its answer does not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from agentflow.api.chat_messages import STRUCTURED_OUTPUT, ChatMessage, MessageRole
from agentflow.api.chat_models import BaseChatModelConnection, BaseChatModelSetup, StructuredOutputStrategy
from agentflow.api.encoding import check_values, plain_of, text_of
from agentflow.api.output_schemas import as_type
from agentflow.errors import ConfigError

_FENCE: Final = re.compile(r"```(?:json)?\s*(?P<json>.*?)\s*(?:```[^`]*)?\Z", re.DOTALL | re.IGNORECASE)
_INSTRUCTION: Final = "Answer with one JSON value that is valid for this JSON schema, and with nothing else: no explanation, no code fence.\n"


def asks_natively(setup: BaseChatModelSetup, connection: BaseChatModelConnection, schema: dict[str, Any]) -> bool:
    """Whether the provider is to make the model answer by a schema: if it can, and has a place for this one.

    Raises:
        ConfigError: The setup wants that, and the provider cannot.
    """
    strategy = StructuredOutputStrategy(str(setup.structured_output_strategy).lower())
    if strategy is StructuredOutputStrategy.PROMPT:
        return False
    why = f"its connection has none for model '{setup.model}'"
    if connection.supports_native_structured_output(setup.model):
        why = connection.native_schema_problem(setup.model, schema)
    if why and strategy is StructuredOutputStrategy.NATIVE:
        what = f"structured_output_strategy is 'native', and {why}"
        raise ConfigError([f"chat model '{setup.name}': {what}; set it to 'auto' or 'prompt'"])
    return not why


def output_instruction(messages: Sequence[ChatMessage], schema: dict[str, Any]) -> list[ChatMessage]:
    """Return messages with the instruction to answer by a schema, behind the first system message."""
    text = _INSTRUCTION + msgspec.json.encode(schema, order="sorted").decode()
    place = next((at + 1 for at, message in enumerate(messages) if message.role == MessageRole.SYSTEM), 0)
    return [*messages[:place], ChatMessage(MessageRole.SYSTEM, text), *messages[place:]]


def with_output(answer: ChatMessage, output: Any, output_type: Any = None) -> ChatMessage:  # noqa: ANN401 (types or schemas)
    """Return an answer with its text read as ``output``.

    Args:
        answer: What the model has said.
        output: A type or a schema.
        output_type: A type that the value has to fit too.

    Raises:
        ValueError: It does not fit; the text says where.
    """
    try:
        plain = msgspec.json.decode(_without_fence(answer.text))
    except msgspec.DecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    try:
        value = as_type(plain, output)
        _check_recordable(value)
        if output_type is not None:
            as_type(value, output_type)
    except ValueError as error:
        raise ValueError(text_of(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return msgspec.structs.replace(answer, extra_args={**answer.extra_args, STRUCTURED_OUTPUT: value})


def _check_recordable(value: Any) -> None:  # noqa: ANN401 (of a user's type)
    """Refuse values that no event, memory or output can carry, however well they fit their type.

    Raises:
        ValueError: They are such.
    """
    try:
        plain = msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=plain_of)
    except (TypeError, ValueError):
        return  # a type that cannot be encoded is no fault of the model
    check_values(plain)


def correction(why: str) -> ChatMessage:
    """Return what a model is told whose answer does not fit."""
    return ChatMessage(
        MessageRole.USER, f"Your answer does not fit the JSON schema: {why}. Answer again, with the JSON value only."
    )


def _without_fence(text: str) -> str:
    """Return the JSON of an answer: without a Markdown fence around it, which may have been cut off at its end."""
    text = text.strip()
    fenced = _FENCE.match(text)
    return fenced["json"] if fenced else text
