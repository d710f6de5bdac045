"""Messages of a conversation with a model: what people, models and tools say, and what it cost."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypedDict

import msgspec

from agentflow.api.encoding import check_values, encodable_text

STRUCTURED_OUTPUT: Final = "structured_output"
"""Key in `ChatMessage.extra_args`: the answer as the output schema has it."""


class MessageRole(enum.StrEnum):
    """Who says it."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


_ROLES: Final = frozenset(map(str, MessageRole))


class TextPart(msgspec.Struct, tag="text", omit_defaults=True):
    """Text among other parts.

    Attributes:
        text: The text.
        cache: The provider may cache the prompt up to here (a hint; where it caches by itself, it is ignored).
    """

    text: str
    cache: bool = False


class ImagePart(msgspec.Struct, tag="image", omit_defaults=True):
    """An image: its bytes, or where it is.

    Attributes:
        media_type: Such as ``image/png``.
        data: The bytes.
        url: Where the provider finds it, instead of ``data``.
    """

    media_type: str = "image/png"
    data: bytes = b""
    url: str = ""

    def __post_init__(self) -> None:
        if not (self.data or self.url):
            raise ValueError(
                "an ImagePart has neither data nor a url: ImagePart('image/png', data), ImagePart(url='https://…')"
            )


class FilePart(msgspec.Struct, tag="file", omit_defaults=True):
    """A document: its bytes, where it is, or what the provider knows it by.

    Attributes:
        media_type: Such as ``application/pdf``.
        data: The bytes.
        url: Where the provider finds it, instead of ``data``.
        file_id: Id of a file that was uploaded to the provider, instead of both.
        name: File name, for the model.
    """

    media_type: str = "application/pdf"
    data: bytes = b""
    url: str = ""
    file_id: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not (self.data or self.url or self.file_id):
            raise ValueError(
                "a FilePart has neither data nor a url nor a file_id: FilePart('application/pdf', data, name='a.pdf')"
            )


Part = TextPart | ImagePart | FilePart


class ReasoningPart(msgspec.Struct, omit_defaults=True):
    """What a model thought before it answered, as far as its provider shows it.

    Attributes:
        text: The text; empty where the provider keeps it.
        opaque: What the provider wants back with the message in the next turn (a signature, an encrypted text, an id).
    """

    text: str = ""
    opaque: dict[str, Any] = {}


class Usage(msgspec.Struct, omit_defaults=True):
    """Tokens of one call, as the provider counts them.

    Attributes:
        input_tokens: Of the prompt, cached ones included.
        output_tokens: Of the answer, those of its reasoning included.
        cached_tokens: Of the prompt, read from the provider's cache.
        cache_write_tokens: Of the prompt, written to it.
        reasoning_tokens: Of the answer, spent on reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


class ToolFunction(TypedDict):
    """Which tool, and its arguments: a dict; the model's own text where it is no JSON object."""

    name: str
    arguments: dict[str, Any] | str


class ToolCall(TypedDict, total=False):
    """A model's wish that a tool is called. ``original_id`` is the provider's id, ``id`` is unique in the run."""

    id: str
    type: str
    function: ToolFunction
    original_id: str


class ChatMessage(msgspec.Struct, omit_defaults=True):
    """One message.

    Attributes:
        role: Who says it; of `MessageRole`.
        content: The text.
        tool_calls: Tools that the model wants to be called (role assistant).
        extra_args: Whatever else is known: ``external_id`` (role tool: the id of the call that it answers), ``model_name``,
            ``promptTokens``, ``completionTokens``, ``structured_output``.
        parts: The whole content where it is more than text: texts, images, files, in order. Empty: ``content`` is all. If none of
            them is a text, ``content`` comes before them (`said`).
        reasoning: What the model thought (role assistant).
        usage: Tokens of the call that gave this message; None: no call did.
        finish_reason: Why the model ended: ``stop``, ``tool_calls``, ``length``, ``content_filter``; empty: not known.
        cache: The provider may cache the prompt up to the end of this message.
    """

    role: str = MessageRole.USER
    content: str = ""
    tool_calls: list[ToolCall] = []
    extra_args: dict[str, Any] = {}
    parts: list[Part] = []
    reasoning: list[ReasoningPart] = []
    usage: Usage | None = None
    finish_reason: str = ""
    cache: bool = False

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise ValueError(
                f"{self.role!r} is no role of a message: one of {', '.join(map(repr, map(str, MessageRole)))}"
            )

    @property
    def text(self) -> str:
        """All text of the message, parts included."""
        return self.content or "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def said(self) -> list[Part]:
        """The whole content as parts, as all providers are told it."""
        if not self.content or any(isinstance(part, TextPart) for part in self.parts):
            return self.parts
        return [TextPart(self.content), *self.parts]

    @property
    def output(self) -> Any:  # noqa: ANN401 (of the schema that was asked for)
        """The answer as the output schema has it; None where none was asked for."""
        return self.extra_args.get(STRUCTURED_OUTPUT)

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing at all."""
        return not (self.content or self.parts or self.tool_calls)


def tool_call(name: str, arguments: dict[str, Any] | str, original_id: str = "") -> ToolCall:
    """Return a model's wish as adapters report it; its ``id`` is set where the call is recorded."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}, "original_id": original_id}


def recordable_arguments(arguments: dict[str, Any] | str) -> dict[str, Any] | str:
    """Return arguments of a tool call as they can be recorded: an object that holds what cannot be is a text, as malformed JSON is."""
    if isinstance(arguments, dict):
        try:
            check_values(arguments)
        except ValueError:
            return arguments_text(arguments)
    return arguments


def arguments_text(arguments: object) -> str:
    """Return what a model has given as arguments as text, whatever it is."""
    if isinstance(arguments, str):
        return arguments
    try:
        return encodable_text(json.dumps(arguments, ensure_ascii=False, separators=(",", ":"), default=repr))
    except (TypeError, ValueError, RecursionError) as error:  # keys that are none; within itself; nested too deeply
        return f"({error})"


def tool_message(call: ToolCall, text: str) -> ChatMessage:
    """Return the message that answers a tool call."""
    return ChatMessage(
        MessageRole.TOOL, text, extra_args={"external_id": call.get("original_id") or call.get("id", "")}
    )


def read_message(value: Any) -> ChatMessage:  # noqa: ANN401 (as an event or memory carries it)
    """Return a message that was encoded as part of an event, or in memory, or that somebody has written as a mapping.

    Raises:
        ValidationError: It is none; a ValueError.
    """
    if isinstance(value, ChatMessage):
        return value
    fields = ChatMessage.__struct_fields__
    unknown = [name for name in value if name not in fields] if isinstance(value, Mapping) else ()
    try:
        if unknown:
            raise msgspec.ValidationError(f"it has no field {', '.join(map(repr, unknown))}")
        return msgspec.convert(value, ChatMessage)
    except msgspec.ValidationError as error:
        form = f"{{'role': 'user', 'content': '…'}}, with the fields {', '.join(fields)}"
        raise msgspec.ValidationError(
            f"this is no message: {error}; a message is a text, a ChatMessage, or {form}"
        ) from None


def read_messages(values: Any) -> list[ChatMessage]:  # noqa: ANN401 (as above)
    """Return messages that were encoded; a text is a message of the user. One message is a conversation too.

    Raises:
        TypeError: They are no list.
        ValidationError: As `read_message`.
    """
    if isinstance(values, (str, ChatMessage, Mapping)):
        values = [values]
    if not isinstance(values, Iterable):
        raise TypeError(f"messages are a text, a message, or a list of them, not {values!r}")
    return [ChatMessage(content=value) if isinstance(value, str) else read_message(value) for value in values]
