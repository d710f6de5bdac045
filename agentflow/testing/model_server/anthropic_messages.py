"""Anthropic's Messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentflow.testing.model_server.request import Message, ModelRequest, Part, Role, Tool, call_of, message_of
from agentflow.testing.model_server.schemas import claude_refusal
from agentflow.testing.model_server.script import HttpError, Reply, Usage
from agentflow.testing.model_server.wire import MESSAGES, Portions, Wire, chosen, encode, listed, pieces, sse

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refusal": "refusal",
    "content_filter": "refusal",
}
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBtb2RlbCBzZXJ2ZXI="
"""Of every piece of reasoning."""


class AnthropicMessages(Wire):
    """``POST /v1/messages``. Arguments of a tool that are no JSON stand, without a stream, as text where an object should be."""

    id_header = "request-id"

    def messages(self, body: Mapping[str, Any]) -> list[Message]:
        """See `Wire`."""
        system = [_part(one) for one in listed(body.get("system"))]
        found = [message_of("system", system)] if system else []
        for one in body.get("messages", ()):
            blocks = listed(one["content"])
            for result in (block for block in blocks if block["type"] == "tool_result"):
                parts = [_part(part) for part in listed(result.get("content"))]
                found.append(message_of("tool", parts, tool_call_id=result["tool_use_id"]))
            parts = [_part(block) for block in blocks if block["type"] not in _NO_PARTS]
            calls = [
                call_of(block["name"], block["input"], block["id"]) for block in blocks if block["type"] == "tool_use"
            ]
            thought = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
            role: Role = "assistant" if one["role"] == "assistant" else "user"
            if parts or calls or thought:
                found.append(message_of(role, parts, tool_calls=calls, reasoning=thought))
        return found

    def tools(self, body: Mapping[str, Any]) -> list[Tool]:
        """See `Wire`."""
        tools = [one for one in body.get("tools") or () if "input_schema" in one]
        return [Tool(one["name"], one.get("description", ""), one["input_schema"]) for one in tools]

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Wire`."""
        names = {one: one for one in ("temperature", "top_p", "max_tokens", "tool_choice")}
        return chosen(body, stop="stop_sequences", **names)

    def output_schema(self, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See `Wire`."""
        asked = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
        return asked.get("schema")

    def refused_schema(self, body: Mapping[str, Any]) -> HttpError | None:
        """See `Wire`."""
        schema = self.output_schema(body)
        return None if schema is None else claude_refusal(schema, "output_config.format.schema")

    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """See `Wire`."""
        return encode(_message(reply, request) | _stop(reply) | {"content": _blocks(reply, request)})

    def stream(self, reply: Reply, request: ModelRequest) -> list[bytes]:
        """See `Wire`."""

        def event(kind: str, **fields: object) -> bytes:
            return sse({"type": kind, **fields}, kind)

        portions = Portions()
        message = _message(reply, request) | {"stop_reason": None, "stop_sequence": None, "content": []}
        message["usage"] = message["usage"] | {"output_tokens": 1}
        portions.frame(event("message_start", message=message))
        for place, block in enumerate(_blocks(reply, request)):
            field, kind, empty = _DELTAS[block["type"]]
            text = msgspec.json.encode(block["input"]).decode() if field == "input" else block[field]
            if isinstance(block.get("input"), str):
                text = block["input"]
            opened = block | {field: empty} | ({"signature": ""} if field == "thinking" else {})
            portions.frame(event("content_block_start", index=place, content_block=opened))
            if not place:
                portions.frame(event("ping"))
            for piece in pieces(text, reply.chunk_count):
                name = "partial_json" if field == "input" else field
                portions.content(event("content_block_delta", index=place, delta={"type": kind, name: piece}))
            if field == "thinking":
                signed = {"type": "signature_delta", "signature": SIGNATURE}
                portions.frame(event("content_block_delta", index=place, delta=signed))
            portions.frame(event("content_block_stop", index=place))
        portions.frame(event("message_delta", delta=_stop(reply), usage=_usage(reply.usage)), event("message_stop"))
        return portions.end()

    def error(self, failed: HttpError) -> bytes:
        """See `Wire`."""
        kind = failed.code or _ERRORS.get(
            failed.status, "api_error" if failed.status >= 500 else "invalid_request_error"
        )
        message = failed.message or MESSAGES.get(failed.status, "")
        return encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_model_server"})

    def context_too_long(self) -> HttpError:
        """See `Wire`."""
        return HttpError(400, message="prompt is too long: 210000 tokens > 200000 maximum")

    def unauthorized(self, key: str) -> HttpError:
        """See `Wire`. Anthropic does not show the key; here it does, since a proxy before it may."""
        return HttpError(401, message=f"invalid x-api-key: {key}")

    def error_in_stream(self, failed: HttpError) -> bytes:
        """See `Wire`."""
        return sse(msgspec.Raw(self.error(failed)), "error")


_NO_PARTS = {"tool_result", "tool_use", "thinking", "redacted_thinking"}
_DELTAS: dict[str, tuple[str, str, object]] = {
    "text": ("text", "text_delta", ""),
    "thinking": ("thinking", "thinking_delta", ""),
    "tool_use": ("input", "input_json_delta", {}),
}
"""Of a block's type: its field, the type of its deltas, and the field's value at the block's start."""


def _message(reply: Reply, request: ModelRequest) -> dict[str, Any]:
    return {
        "id": f"msg_{request.number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "usage": _usage(reply.usage),
    }


def _stop(reply: Reply) -> dict[str, Any]:
    stop: dict[str, Any] = {"stop_reason": _STOP_REASONS[reply.ended_by], "stop_sequence": None}
    if stop["stop_reason"] == "refusal":
        stop["stop_details"] = {"type": "refusal", "category": None, "explanation": reply.text or None}
    return stop


def _blocks(reply: Reply, request: ModelRequest) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.reasoning:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": SIGNATURE})
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    for id_, call in request.ids_of(reply):
        blocks.append({"type": "tool_use", "id": id_, "name": call.name, "input": call.arguments})
    return blocks


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input - usage.cached - usage.cache_written,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": usage.cache_written,
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def _part(block: Mapping[str, Any]) -> Part:
    match block["type"]:
        case "text":
            return Part("text", block["text"])
        case "image" | "document":
            source = block["source"]
            kind = "image" if block["type"] == "image" else "file"
            return Part(kind, "", source.get("media_type", ""), source.get("data", ""), source.get("url", ""))
    return Part("other")
