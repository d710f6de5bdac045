"""OpenAI's Responses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from agentflow.testing.model_server.openai_chat import OpenAIErrors
from agentflow.testing.model_server.request import (
    Message,
    ModelRequest,
    Part,
    Role,
    Tool,
    call_of,
    message_of,
    part_of_url,
)
from agentflow.testing.model_server.schemas import openai_refusal
from agentflow.testing.model_server.script import HttpError, Reply, Usage
from agentflow.testing.model_server.wire import Portions, chosen, encode, listed, pieces, sse

_ROLES: dict[str, Role] = {"developer": "system", "system": "system", "assistant": "assistant"}


class OpenAIResponses(OpenAIErrors):
    """``POST …/responses``."""

    param = "input"
    too_long = "Your input exceeds the context window of this model. Please adjust your input and try again."

    def messages(self, body: Mapping[str, Any]) -> list[Message]:
        """See `Wire`. What one answer consisted of (reasoning, text, calls) is one message."""
        found = [message_of("system", [Part("text", body["instructions"])])] if body.get("instructions") else []
        items = body.get("input") or ()
        for one in [{"role": "user", "content": items}] if isinstance(items, str) else items:
            message = _message(one)
            if message.role == "assistant" and found and found[-1].role == "assistant":
                last = found.pop()
                message = Message(
                    "assistant",
                    last.text + message.text,
                    [*last.parts, *message.parts],
                    [*last.tool_calls, *message.tool_calls],
                    reasoning=last.reasoning + message.reasoning,
                )
            found.append(message)
        return found

    def tools(self, body: Mapping[str, Any]) -> list[Tool]:
        """See `Wire`."""
        functions = [one for one in body.get("tools") or () if one["type"] == "function"]
        return [Tool(one["name"], one.get("description") or "", one.get("parameters") or {}) for one in functions]

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Wire`."""
        names = {one: one for one in ("temperature", "top_p", "tool_choice")}
        return chosen(body, max_tokens="max_output_tokens", **names)

    def output_schema(self, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See `Wire`."""
        return ((body.get("text") or {}).get("format") or {}).get("schema")

    def refused_schema(self, body: Mapping[str, Any]) -> HttpError | None:
        """See `Wire`."""
        asked = (body.get("text") or {}).get("format") or {}
        return openai_refusal(asked, "text.format") if "schema" in asked else None

    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """See `Wire`."""
        return encode(_response(reply, request))

    def stream(self, reply: Reply, request: ModelRequest) -> list[bytes]:
        """See `Wire`."""
        response = _response(reply, request)
        begun = response | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
        count = 0

        def event(kind: str, **fields: object) -> bytes:
            nonlocal count
            count += 1
            return sse({"type": kind, "sequence_number": count - 1, **fields}, kind)

        portions = Portions()
        portions.frame(event("response.created", response=begun), event("response.in_progress", response=begun))
        for place, item in enumerate(response["output"]):
            opened = item | {"status": "in_progress"} | _EMPTY[item["type"]]
            portions.frame(event("response.output_item.added", output_index=place, item=opened))
            for kind, fields in _item_events(item, reply.chunk_count):
                add = portions.content if kind.endswith(".delta") else portions.frame
                add(event(kind, item_id=item["id"], output_index=place, **fields))
            portions.frame(event("response.output_item.done", output_index=place, item=item))
        portions.frame(event(f"response.{response['status']}", response=response))
        return portions.end()

    def error_in_stream(self, failed: HttpError) -> bytes:
        """See `Wire`."""
        told = msgspec.json.decode(self.error(failed))["error"]
        failure = {"type": "error", "code": told.get("type", "server_error"), "message": told["message"], "param": None}
        return sse(failure | {"sequence_number": 0}, "error")


_EMPTY: dict[str, dict[str, Any]] = {
    "reasoning": {"summary": []},
    "message": {"content": []},
    "function_call": {"arguments": ""},
}
"""What an item lacks when it is added."""


def _item_events(item: Mapping[str, Any], count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what happens between the begin and the end of an item."""
    if item["type"] == "function_call":
        for piece in pieces(item["arguments"], count):
            yield "response.function_call_arguments.delta", {"delta": piece}
        yield "response.function_call_arguments.done", {"arguments": item["arguments"]}
        return
    if item["type"] == "reasoning":
        part, begin, text, at = item["summary"][0], "reasoning_summary_part", "reasoning_summary_text", "summary_index"
    else:
        part, begin, at = item["content"][0], "content_part", "content_index"
        text = part["type"]
    field = "refusal" if part["type"] == "refusal" else "text"
    logprobs: dict[str, list[object]] = {"logprobs": []} if part["type"] == "output_text" else {}
    yield f"response.{begin}.added", {at: 0, "part": part | {field: ""}}
    for piece in pieces(part[field], count):
        yield f"response.{text}.delta", {at: 0, "delta": piece, **logprobs}
    yield f"response.{text}.done", {at: 0, field: part[field], **logprobs}
    yield f"response.{begin}.done", {at: 0, "part": part}


def _response(reply: Reply, request: ModelRequest) -> dict[str, Any]:
    incomplete = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reply.ended_by)
    return {
        "id": f"resp_{request.number}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if incomplete else "completed",
        "error": None,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "instructions": None,
        "metadata": {},
        "model": request.model,
        "output": _output(reply, request),
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": _usage(reply.usage),
    }


def _output(reply: Reply, request: ModelRequest) -> list[dict[str, Any]]:
    output: list[dict[str, Any]] = []
    if reply.reasoning:
        summary = [{"type": "summary_text", "text": reply.reasoning}]
        output.append({"type": "reasoning", "id": f"rs_{request.number}", "summary": summary, "status": "completed"})
    if reply.text or not reply.tool_calls:
        content: dict[str, Any] = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        if reply.ended_by == "refusal":
            content = {"type": "refusal", "refusal": reply.text}
        message = {"type": "message", "id": f"msg_{request.number}", "role": "assistant", "status": "completed"}
        output.append(message | {"content": [content]})
    for place, (id_, call) in enumerate(request.ids_of(reply)):
        item = {"type": "function_call", "id": f"fc_{request.number}_{place}", "call_id": id_, "status": "completed"}
        output.append(item | {"name": call.name, "arguments": call.arguments_text})
    return output


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_written},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def _message(item: Mapping[str, Any]) -> Message:
    match item.get("type", "message"):
        case "message":
            parts = [_part(part) for part in listed(item.get("content"))]
            return message_of(_ROLES.get(item["role"], "user"), parts)
        case "function_call":
            return Message("assistant", tool_calls=[call_of(item["name"], item["arguments"], item["call_id"])])
        case "function_call_output":
            parts = [_part(part) for part in listed(item["output"])]
            return message_of("tool", parts, tool_call_id=item["call_id"])
        case "reasoning":
            return Message("assistant", reasoning="".join(one["text"] for one in item.get("summary", ())))
    return Message("user", parts=[Part("other")])


def _part(part: Mapping[str, Any]) -> Part:
    match part.get("type"):
        case "text" | "input_text" | "output_text" | "refusal":
            return Part("text", part.get("text") or part.get("refusal") or "")
        case "input_image":
            return part_of_url("image", part.get("image_url") or part.get("file_id") or "")
        case "input_file":
            return part_of_url("file", part.get("file_data") or part.get("file_url") or part.get("file_id") or "")
    return Part("other")
