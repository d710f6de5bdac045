"""Answers by a schema: asked for natively or by an instruction, read, and what a model is told when its answer does not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from agentflow.api.chat_messages import STRUCTURED_OUTPUT, ChatMessage, MessageRole
from agentflow.api.chat_models import BaseChatModelConnection, BaseChatModelSetup, StructuredOutputStrategy
from agentflow.api.output_schemas import as_type
from agentflow.errors import ConfigError

_FENCE: Final = re.compile(r"```(?:json)?\s*(?P<json>.*?)\s*(?:```[^`]*)?\Z", re.DOTALL | re.IGNORECASE)
_INSTRUCTION: Final = "Answer with one JSON value that is valid for this JSON schema, and with nothing else: no explanation, no code fence.\n"


def asks_natively(setup: BaseChatModelSetup, connection: BaseChatModelConnection) -> bool:
    """Whether the provider is to make the model answer by a schema.

    Raises:
        ConfigError: The setup wants that, and the provider cannot.
    """
    strategy = StructuredOutputStrategy(str(setup.structured_output_strategy).lower())
    can = connection.supports_native_structured_output(setup.model)
    if strategy is StructuredOutputStrategy.NATIVE and not can:
        what = f"structured_output_strategy is 'native', and its connection has none for model '{setup.model}'"
        raise ConfigError([f"chat model '{setup.name}': {what}; set it to 'auto' or 'prompt'"])
    return can and strategy is not StructuredOutputStrategy.PROMPT


def output_instruction(messages: Sequence[ChatMessage], schema: dict[str, Any]) -> list[ChatMessage]:
    """Return messages with the instruction to answer by a schema, behind the first system message."""
    text = _INSTRUCTION + msgspec.json.encode(schema, order="sorted").decode()
    place = next((at + 1 for at, message in enumerate(messages) if message.role == MessageRole.SYSTEM), 0)
    return [*messages[:place], ChatMessage(MessageRole.SYSTEM, text), *messages[place:]]


def with_output(answer: ChatMessage, output: Any) -> ChatMessage:  # noqa: ANN401 (a type or a schema)
    """Return an answer with its text read as ``output``.

    Raises:
        ValueError: It does not fit; the text says where.
    """
    try:
        plain = msgspec.json.decode(_without_fence(answer.text))
    except msgspec.DecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    value = as_type(plain, output)
    return msgspec.structs.replace(answer, extra_args={**answer.extra_args, STRUCTURED_OUTPUT: value})


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
