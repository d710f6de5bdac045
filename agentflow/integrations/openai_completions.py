"""OpenAI's Chat Completions: what a request becomes, and what is read of an answer. Also what other servers and LiteLLM speak."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Final

import msgspec

from agentflow.api.chat_messages import (
    ChatMessage,
    FilePart,
    ImagePart,
    MessageRole,
    ReasoningPart,
    TextPart,
    Usage,
    arguments_text,
    tool_call,
)
from agentflow.api.chat_models import ChatDelta, ChatRequest, DeltaKind, OnDelta
from agentflow.errors import ContentRefused, ModelRejected, ModelUnavailable
from agentflow.integrations.chat_conversions import call_id, decoded, parsed_arguments, result_id, told_usage
from agentflow.integrations.openai_connection import (
    OpenAIProtocolConnection,
    classified,
    data_url,
    next_event,
    offered,
    output_format,
    shown_parts,
    text_or_parts,
)
from agentflow.integrations.provider_errors import Failures

_ID_MAX: Final = 40  # characters, of the id of a call
_FINISH: Final = {"function_call": "tool_calls"}
_INTERRUPTED: Final = frozenset({"insufficient_system_resource", "abort", "error"})  # DeepSeek's, vLLM's, OpenRouter's
_REASONING_FIELDS: Final = ("reasoning_content", "reasoning")


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None
    index: int | None = None


class _Said(msgspec.Struct):
    """A message, or a piece of one."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class Completion(msgspec.Struct):
    """An answer, or a chunk of one."""

    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Counts | None = None
    error: dict[str, Any] | str | None = None


_COMPLETION: Final = msgspec.json.Decoder(Completion)


class CompletionsConnection(OpenAIProtocolConnection):
    """A way to a server that speaks Chat Completions."""

    path: ClassVar[str] = "/chat/completions"
    returns_reasoning: ClassVar[bool] = False
    """Whether what a model thought before it called tools is sent back with the results."""

    def body(
        self, request: ChatRequest, options: dict[str, Any], failures: Failures, *, is_streamed: bool
    ) -> dict[str, Any]:
        """Return the body of a request."""
        options.pop("extract_reasoning", None)
        made = completion_arguments(request, options, failures, returns_reasoning=self.returns_reasoning)
        made |= made.pop("extra_body", {})
        if is_streamed:
            made["stream"] = True
            made["stream_options"] = {"include_usage": True, **made.get("stream_options", {})}
        return made

    def read(self, body: bytes, request: ChatRequest, failures: Failures) -> ChatMessage:
        """Return the answer in a body."""
        try:
            completion = decoded(body, _COMPLETION)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise failures.unreadable(error) from None
        return read_completion(completion, request, failures)

    async def follow(
        self, stream: AsyncIterator[object], request: ChatRequest, failures: Failures, on_delta: OnDelta
    ) -> ChatMessage:
        """Return the answer in a stream."""
        answer = Answer(request, failures, on_delta)
        while (chunk := await next_event(stream, Completion, failures)) is not None:
            answer.add(chunk)
        return answer.message()


def completion_arguments(
    request: ChatRequest, options: dict[str, Any], failures: Failures, *, returns_reasoning: bool
) -> dict[str, Any]:
    """Return the arguments of a completion."""
    is_strict = bool(options.pop("strict", False))
    made: dict[str, Any] = {"model": request.model, "messages": _messages(request, failures, returns_reasoning)}
    if request.tools:
        made["tools"] = [{"type": "function", "function": offered(tool, is_strict=is_strict)} for tool in request.tools]
    if request.output_schema is not None:
        made["response_format"] = {"type": "json_schema", "json_schema": output_format(request)}
    return made | options


def _messages(request: ChatRequest, failures: Failures, returns_reasoning: bool) -> list[dict[str, Any]]:  # noqa: FBT001
    made: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []  # by tools: their results are texts here, so the user shows the rest
    parts = {**_PARTS, "FilePart": lambda part: _file(part, failures)}
    last_asked = max((at for at, one in enumerate(request.messages) if one.role == MessageRole.USER), default=0)
    for at, message in enumerate(request.messages):
        if message.role == MessageRole.TOOL:
            made.append({"role": "tool", "tool_call_id": result_id(message)[-_ID_MAX:], "content": message.text})
            shown += shown_parts([part for part in message.parts if not isinstance(part, TextPart)], parts)
            continue
        if shown:
            made.append({"role": "user", "content": shown})
            shown = []
        if message.role == MessageRole.ASSISTANT:
            made.append(_said(message, returns_reasoning=returns_reasoning and at > last_asked))
        else:
            made.append({"role": str(message.role), "content": text_or_parts(message, parts)})
    if shown:
        made.append({"role": "user", "content": shown})
    return made


def _said(message: ChatMessage, *, returns_reasoning: bool) -> dict[str, Any]:
    """Return a message of the model."""
    made: dict[str, Any] = {"role": "assistant", "content": message.text}
    if message.tool_calls:
        made["content"] = message.text or None
        made["tool_calls"] = [
            {
                "id": call_id(call)[-_ID_MAX:],
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": _text_of(call["function"]["arguments"]),
                },
            }
            for call in message.tool_calls
        ]
    if returns_reasoning:
        for thought in message.reasoning:
            if (field := thought.opaque.get("field")) in _REASONING_FIELDS:
                made[field] = made.get(field, "") + thought.text
    return made


def _text_of(arguments: dict[str, Any] | str) -> str:
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _file(part: FilePart, failures: Failures) -> dict[str, Any]:
    if part.media_type.startswith("audio/"):
        sound = {"data": data_url(part).partition(",")[2], "format": part.media_type.removeprefix("audio/")}
        return {"type": "input_audio", "input_audio": sound}
    if part.url:
        raise failures.of(ModelRejected, "Chat Completions take no file by its URL: give its bytes, or its id")
    held = {"file_id": part.file_id} if part.file_id else {"filename": part.name or "file", "file_data": data_url(part)}
    return {"type": "file", "file": held}


def _image(part: ImagePart) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": part.url or data_url(part)}}


_PARTS: Final = {"TextPart": lambda part: {"type": "text", "text": part.text}, "ImagePart": _image}


def read_completion(completion: Completion, request: ChatRequest, failures: Failures) -> ChatMessage:
    """Return a whole answer.

    Raises:
        ModelError: It is none, or a refusal.
    """
    answer = Answer(request, failures, None)
    answer.add(completion)
    return answer.message()


class _CallInParts:
    """A call of a tool whose pieces come one by one."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


class Answer:
    """Collects an answer, which comes whole or in chunks."""

    def __init__(self, request: ChatRequest, failures: Failures, on_delta: OnDelta | None) -> None:
        self._request = request
        self._failures = failures
        self._on_delta = on_delta
        self._shows_reasoning = request.options.get("extract_reasoning", True)
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._reasoning: list[str] = []
        self._reasoning_field = ""
        self._calls: list[_CallInParts] = []
        self._places: dict[int, int] = {}  # of calls, by the provider's index
        self._logprobs: list[Any] = []
        self._finish_reason = ""
        self._usage: Usage | None = None
        self._model = ""
        self._id = ""

    def add(self, chunk: Completion) -> None:
        """Take in what has come."""
        if chunk.error:
            told = chunk.error if isinstance(chunk.error, dict) else {"message": chunk.error}
            raise classified(self._failures, told)
        self._model = chunk.model or self._model
        self._id = chunk.id or self._id
        if chunk.usage is not None:
            self._usage = usage_of(chunk.usage)
        for choice in (chunk.choices or ())[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason
            if choice.logprobs:
                self._logprobs += choice.logprobs.get("content") or ()
            if (said := choice.message or choice.delta) is not None:
                self._add_said(said)

    def _add_said(self, said: _Said) -> None:
        for field in _REASONING_FIELDS if self._shows_reasoning else ():
            if thought := getattr(said, field):
                self._reasoning_field = field
                self._reasoning.append(thought)
                self._tell(thought, DeltaKind.REASONING)
                break
        if said.content:
            text = said.content if isinstance(said.content, str) else _joined(said.content)
            self._text.append(text)
            self._tell(text, DeltaKind.TEXT)
        if said.refusal:
            self._refusal.append(said.refusal)
        for call in said.tool_calls or ():
            self._add_call(call)

    def _add_call(self, piece: _Call) -> None:
        place = self._place_of(piece)
        call = self._calls[place]
        call.id = call.id or piece.id or ""
        name = "" if call.name else piece.function.name or ""
        call.name += name
        arguments = piece.function.arguments or ""
        text = arguments_text(arguments)
        call.arguments.append(text)
        if text or name:
            self._tell(text, DeltaKind.TOOL_CALL, place, name)

    def _place_of(self, piece: _Call) -> int:
        """Return to which call a piece belongs; servers that give no index send each call whole, or give its id."""
        index = piece.index
        if index is None or (index in self._places and piece.id and self._calls[self._places[index]].id != piece.id):
            known = [place for place, call in enumerate(self._calls) if piece.id and call.id == piece.id]
            if known or (not piece.id and not piece.function.name and self._calls):
                return known[0] if known else len(self._calls) - 1
        elif index in self._places:
            return self._places[index]
        self._calls.append(_CallInParts())
        if index is not None:
            self._places[index] = len(self._calls) - 1
        return len(self._calls) - 1

    def _tell(self, text: str, kind: DeltaKind, index: int = 0, name: str = "") -> None:
        if self._on_delta is not None:
            self._on_delta(ChatDelta(text, kind, index, name))

    def message(self) -> ChatMessage:
        """Return the answer.

        Raises:
            ModelError: It has not come to its end, or it is a refusal.
        """
        if self._refusal:
            raise self._failures.of(ContentRefused, f"the model refuses: {''.join(self._refusal)}")
        finish_reason = _FINISH.get(self._finish_reason, self._finish_reason)
        if not finish_reason:
            raise self._failures.cut()
        if finish_reason == "content_filter":
            raise self._failures.of(ContentRefused, "the provider's filter has stopped the answer")
        if finish_reason in _INTERRUPTED:
            raise self._failures.of(ModelUnavailable, f"the model was interrupted: {finish_reason}")
        if self._calls and finish_reason == "stop":  # some servers do not tell
            finish_reason = "tool_calls"
        told: dict[str, Any] = {"response_id": self._id} if self._id else {}
        model = self._model or self._request.model
        told |= {"model_name": model} if self._usage is None else told_usage(model, self._usage)
        if self._logprobs:
            told["logprobs"] = self._logprobs
        thought = "".join(self._reasoning)
        return ChatMessage(
            MessageRole.ASSISTANT,
            "".join(self._text),
            tool_calls=[
                tool_call(call.name, parsed_arguments("".join(call.arguments)), call.id) for call in self._calls
            ],
            reasoning=[ReasoningPart(thought, {"field": self._reasoning_field})] if thought else [],
            usage=self._usage,
            finish_reason=finish_reason,
            extra_args=told,
        )


def _joined(parts: Sequence[dict[str, Any]]) -> str:
    """Return the text of a content that comes as parts."""
    return "".join(str(part.get("text") or "") for part in parts if part.get("type") in {"text", "output_text"})


def usage_of(counts: _Counts) -> Usage:
    """Return what an answer cost."""
    read, written = counts.prompt_tokens_details, counts.completion_tokens_details
    return Usage(
        counts.prompt_tokens or 0,
        counts.completion_tokens or 0,
        (read.cached_tokens or 0) if read else 0,
        (read.cache_write_tokens or 0) if read else 0,
        (written.reasoning_tokens or 0) if written else 0,
    )
