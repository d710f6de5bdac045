"""OpenAI's Responses: what a request becomes, and what is read of an answer.

The conversation is the engine's: nothing is stored at the provider (``store`` off), so what a model thought goes back with the next
request, as it came: encrypted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Final

import msgspec

from agentflow.api.chat_messages import (
    ChatMessage,
    FilePart,
    ImagePart,
    MessageRole,
    ReasoningPart,
    ToolCall,
    Usage,
    tool_call,
)
from agentflow.api.chat_models import ChatDelta, ChatRequest, DeltaKind, OnDelta
from agentflow.errors import ContentRefused, ModelUnavailable
from agentflow.integrations.chat_conversions import call_id, decoded, parsed_arguments, result_id, told_usage
from agentflow.integrations.openai_connection import (
    OpenAIProtocolConnection,
    classified,
    data_url,
    next_event,
    offered,
    output_format,
    reasons,
    text_or_parts,
)
from agentflow.integrations.provider_errors import Failures

_ENCRYPTED: Final = "reasoning.encrypted_content"
_DELTAS: Final = {
    "response.output_text.delta": DeltaKind.TEXT,
    "response.reasoning_summary_text.delta": DeltaKind.REASONING,
    "response.reasoning_text.delta": DeltaKind.REASONING,
}
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_BETWEEN_SUMMARIES: Final = "\n\n"


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Counts(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class Response(msgspec.Struct):
    """An answer."""

    status: str | None
    output: list[dict[str, Any]]
    id: str = ""
    model: str = ""
    usage: _Counts | None = None
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None


class _Event(msgspec.Struct):
    """What happens in a stream."""

    type: str
    delta: Any = None
    item: dict[str, Any] | None = None
    output_index: int = 0
    summary_index: int = 0
    response: dict[str, Any] | None = None
    code: str | None = None
    message: str | None = None


_RESPONSE: Final = msgspec.json.Decoder(Response)


class ResponsesConnection(OpenAIProtocolConnection):
    """A way to a server that speaks Responses."""

    path: ClassVar[str] = "/responses"

    def body(
        self,
        request: ChatRequest,
        options: dict[str, Any],
        failures: Failures,  # noqa: ARG002 (this protocol carries all parts)
        *,
        is_streamed: bool,
    ) -> dict[str, Any]:
        """Return the body of a request; options are taken by the names of Chat Completions too."""
        made: dict[str, Any] = {"model": request.model, "input": _items(request), "store": False}
        is_strict = bool(options.pop("strict", False))
        if request.tools:
            made["tools"] = [{"type": "function", **offered(tool, is_strict=is_strict)} for tool in request.tools]
        if "max_tokens" in options:
            options["max_output_tokens"] = options.pop("max_tokens")
        reasoning = {
            name: value
            for name in ("effort", "summary")
            if (value := options.pop(f"reasoning_{name}", None)) is not None
        }
        if reasoning:
            options["reasoning"] = {**reasoning, **options.get("reasoning", {})}
        if isinstance(choice := options.get("tool_choice"), dict) and "function" in choice:
            options["tool_choice"] = {"type": "function", "name": choice["function"]["name"]}
        if request.output_schema is not None:
            format_ = {"type": "json_schema", **output_format(request)}
            options["text"] = {"format": format_, **options.get("text", {})}
        made |= options
        made |= made.pop("extra_body", {})
        if reasons(request.model) and not made["store"]:
            made["include"] = [*made.get("include", ()), _ENCRYPTED]
        if is_streamed:
            made["stream"] = True
        return made

    def read(self, body: bytes, request: ChatRequest, failures: Failures) -> ChatMessage:
        """Return the answer in a body."""
        try:
            response = decoded(body, _RESPONSE)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise failures.unreadable(error) from None
        return read_response(response, request, failures)

    async def follow(
        self, stream: AsyncIterator[object], request: ChatRequest, failures: Failures, on_delta: OnDelta
    ) -> ChatMessage:
        """Return the answer in a stream, whose last event has it whole."""
        calls: list[int] = []  # places of calls among all that the model puts out
        while (event := await next_event(stream, _Event, failures)) is not None:
            if event.type in _ENDS:
                return read_response(_whole(event.response, failures), request, failures)
            if event.type == "error":
                raise classified(failures, {"code": event.code, "message": event.message})
            if (delta := _delta(event, calls)) is not None:
                on_delta(delta)
        raise failures.cut()


def _whole(said: Mapping[str, Any] | None, failures: Failures) -> Response:
    try:
        return msgspec.convert(said, Response)
    except msgspec.ValidationError as error:
        raise failures.unreadable(error) from None


def _delta(event: _Event, calls: list[int]) -> ChatDelta | None:
    """Return the piece of the answer that an event brings; None: it brings none."""
    if (kind := _DELTAS.get(event.type)) is not None:
        return ChatDelta(event.delta, kind)
    match event.type:
        case "response.reasoning_summary_part.added" if event.summary_index:
            return ChatDelta(_BETWEEN_SUMMARIES, DeltaKind.REASONING)
        case "response.output_item.added" if event.item and event.item.get("type") == "function_call":
            calls.append(event.output_index)
            return ChatDelta("", DeltaKind.TOOL_CALL, len(calls) - 1, event.item.get("name", ""))
        case "response.function_call_arguments.delta" if event.output_index in calls:
            return ChatDelta(event.delta, DeltaKind.TOOL_CALL, calls.index(event.output_index))
    return None


def _items(request: ChatRequest) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for message in request.messages:
        match message.role:
            case MessageRole.ASSISTANT:
                items += [part.opaque for part in message.reasoning if part.opaque.get("type") == "reasoning"]
                if message.text:
                    items.append({"role": "assistant", "content": message.text})
                items += [_called(call) for call in message.tool_calls]
            case MessageRole.TOOL:
                output = text_or_parts(message, _PARTS)
                items.append({"type": "function_call_output", "call_id": result_id(message), "output": output})
            case role:
                items.append({"role": str(role), "content": text_or_parts(message, _PARTS)})
    return items


def _called(call: ToolCall) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    return {
        "type": "function_call",
        "call_id": call_id(call),
        "name": call["function"]["name"],
        "arguments": arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode(),
    }


def _file(part: FilePart) -> dict[str, Any]:
    if part.file_id:
        return {"type": "input_file", "file_id": part.file_id}
    if part.url:
        return {"type": "input_file", "file_url": part.url}
    return {"type": "input_file", "filename": part.name or "file", "file_data": data_url(part)}


def _image(part: ImagePart) -> dict[str, Any]:
    return {"type": "input_image", "image_url": part.url or data_url(part)}


_PARTS: Final = {
    "TextPart": lambda part: {"type": "input_text", "text": part.text},
    "ImagePart": _image,
    "FilePart": _file,
}


def read_response(response: Response, request: ChatRequest, failures: Failures) -> ChatMessage:
    """Return an answer.

    Raises:
        ModelError: It failed, or it is a refusal.
    """
    if response.error:
        raise classified(failures, response.error)
    reason = (response.incomplete_details or {}).get("reason")
    if reason == "content_filter":
        raise failures.of(ContentRefused, "the provider's filter has stopped the answer")
    if response.status not in {"completed", "incomplete"}:
        raise failures.of(ModelUnavailable, f"the answer is {response.status}")
    said = ChatMessage(MessageRole.ASSISTANT)
    for item in response.output:
        match item.get("type"):
            case "message":
                for part in item["content"]:
                    if part["type"] == "refusal":
                        raise failures.of(ContentRefused, f"the model refuses: {part['refusal']}")
                    said.content += part.get("text") or ""
            case "function_call":
                arguments = parsed_arguments(item["arguments"])
                said.tool_calls.append(tool_call(item["name"], arguments, item["call_id"]))
            case "reasoning":
                said.reasoning.append(_thought(item))
    said.usage = usage_of(response.usage or _Counts())
    said.extra_args = {"response_id": response.id, **told_usage(response.model or request.model, said.usage)}
    said.finish_reason = "length" if response.status == "incomplete" else "tool_calls" if said.tool_calls else "stop"
    return said


def _thought(item: dict[str, Any]) -> ReasoningPart:
    shown = item.get("summary") or item.get("content") or ()
    text = _BETWEEN_SUMMARIES.join(part.get("text", "") for part in shown)
    return ReasoningPart(text, {name: value for name, value in item.items() if name != "status" and value is not None})


def usage_of(counts: _Counts) -> Usage:
    """Return what an answer cost."""
    read, written = counts.input_tokens_details, counts.output_tokens_details
    return Usage(
        counts.input_tokens,
        counts.output_tokens,
        (read.cached_tokens or 0) if read else 0,
        (read.cache_write_tokens or 0) if read else 0,
        (written.reasoning_tokens or 0) if written else 0,
    )
