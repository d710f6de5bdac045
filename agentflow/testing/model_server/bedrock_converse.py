"""AWS Bedrock's Converse, and the binary framing of its streams."""

from __future__ import annotations

import struct
from binascii import crc32
from collections.abc import Mapping
from typing import Any

import msgspec

from agentflow.testing.model_server.request import Message, ModelRequest, Part, Role, Tool, call_of, message_of
from agentflow.testing.model_server.schemas import claude_refusal
from agentflow.testing.model_server.script import HttpError, Reply, Usage
from agentflow.testing.model_server.wire import MESSAGES, Portions, Wire, chosen, encode, pieces

_ERRORS = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refusal": "guardrail_intervened",
    "content_filter": "content_filtered",
}
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBtb2RlbCBzZXJ2ZXI="
"""Of every piece of reasoning."""


class BedrockConverse(Wire):
    """``POST /model/{model}/converse`` and ``…/converse-stream``.

    Without a stream, arguments of a tool that are no JSON become the stop reason ``malformed_tool_use``, without the call.
    """

    stream_type = "application/vnd.amazon.eventstream"
    id_header = "x-amzn-RequestId"

    def is_stream(self, verb: str, asked: bool | None) -> bool:  # noqa: ARG002, FBT001 (as `Wire`)
        """See `Wire`."""
        return verb == "converse-stream"

    def messages(self, body: Mapping[str, Any]) -> list[Message]:
        """See `Wire`."""
        system = [_part(one) for one in body.get("system") or ()]
        found = [message_of("system", system)] if system else []
        for one in body.get("messages") or ():
            blocks = one["content"]
            for result in (block["toolResult"] for block in blocks if "toolResult" in block):
                parts = [_part(part) for part in result["content"]]
                found.append(message_of("tool", parts, tool_call_id=result["toolUseId"]))
            parts = [_part(block) for block in blocks if not _NO_PARTS & block.keys()]
            uses = [block["toolUse"] for block in blocks if "toolUse" in block]
            thoughts = [block["reasoningContent"] for block in blocks if "reasoningContent" in block]
            thought = "".join(one.get("reasoningText", {}).get("text", "") for one in thoughts)
            role: Role = "assistant" if one["role"] == "assistant" else "user"
            if parts or uses or thought:
                calls = [call_of(use["name"], use["input"], use["toolUseId"]) for use in uses]
                found.append(message_of(role, parts, tool_calls=calls, reasoning=thought))
        return found

    def tools(self, body: Mapping[str, Any]) -> list[Tool]:
        """See `Wire`."""
        specs = [one["toolSpec"] for one in (body.get("toolConfig") or {}).get("tools", ()) if "toolSpec" in one]
        return [Tool(one["name"], one.get("description", ""), one["inputSchema"]["json"]) for one in specs]

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Wire`."""
        config = body.get("inferenceConfig") or {}
        found = chosen(config, temperature="temperature", top_p="topP", max_tokens="maxTokens", stop="stopSequences")
        return found | chosen(body.get("toolConfig") or {}, tool_choice="toolChoice")

    def output_schema(self, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See `Wire`. Bedrock carries it as text."""
        structure = ((body.get("outputConfig") or {}).get("textFormat") or {}).get("structure") or {}
        text = (structure.get("jsonSchema") or {}).get("schema")
        return msgspec.json.decode(text, type=dict[str, Any]) if text else None

    def refused_schema(self, body: Mapping[str, Any]) -> HttpError | None:
        """See `Wire`."""
        schema = self.output_schema(body)
        return None if schema is None else claude_refusal(schema, "outputConfig.textFormat.structure.jsonSchema.schema")

    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """See `Wire`."""
        is_malformed = any(isinstance(call.arguments, str) for call in reply.tool_calls)
        blocks = [
            block for block in _blocks(reply, request) if not isinstance(block.get("toolUse", {}).get("input"), str)
        ]
        return encode(
            {
                "output": {"message": {"role": "assistant", "content": blocks}},
                "stopReason": "malformed_tool_use" if is_malformed else _STOP_REASONS[reply.ended_by],
                "usage": _usage(reply.usage),
                "metrics": {"latencyMs": 1},
            }
        )

    def stream(self, reply: Reply, request: ModelRequest) -> list[bytes]:
        """See `Wire`."""
        portions = Portions()
        portions.frame(_event("messageStart", {"role": "assistant"}))
        for place, block in enumerate(_blocks(reply, request)):

            def delta(content: Mapping[str, Any], place: int = place) -> bytes:
                return _event("contentBlockDelta", {"contentBlockIndex": place, "delta": content})

            if use := block.get("toolUse"):
                start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
                portions.frame(_event("contentBlockStart", {"contentBlockIndex": place, "start": start}))
                given = use["input"]
                text = given if isinstance(given, str) else encode(given).decode()
                for piece in pieces(text, reply.chunk_count):
                    portions.content(delta({"toolUse": {"input": piece}}))
            elif thought := block.get("reasoningContent"):
                for piece in pieces(thought["reasoningText"]["text"], reply.chunk_count):
                    portions.content(delta({"reasoningContent": {"text": piece}}))
                portions.frame(delta({"reasoningContent": {"signature": SIGNATURE}}))
            else:
                for piece in pieces(block["text"], reply.chunk_count):
                    portions.content(delta({"text": piece}))
            portions.frame(_event("contentBlockStop", {"contentBlockIndex": place}))
        portions.frame(_event("messageStop", {"stopReason": _STOP_REASONS[reply.ended_by]}))
        portions.frame(_event("metadata", {"usage": _usage(reply.usage), "metrics": {"latencyMs": 1}}))
        return portions.end()

    def error(self, failed: HttpError) -> bytes:
        """See `Wire`."""
        return encode({"message": failed.message or MESSAGES.get(failed.status, "")})

    def error_headers(self, failed: HttpError) -> dict[str, str]:
        """See `Wire`. The error's name is a header."""
        return super().error_headers(failed) | {"x-amzn-ErrorType": _error_name(failed)}

    def context_too_long(self) -> HttpError:
        """See `Wire`."""
        return HttpError(400, message="Input is too long for requested model.")

    def unauthorized(self, key: str) -> HttpError:
        """See `Wire`. AWS says 403, and does not show the key's id; here it does, since a proxy before it may."""
        message = f"The security token included in the request is invalid: {key}"
        return HttpError(403, "UnrecognizedClientException", message)

    def error_in_stream(self, failed: HttpError) -> bytes:
        """See `Wire`. The service has no name for an overload within a stream but this one."""
        name = _error_name(failed)
        headers = {":message-type": "exception", ":exception-type": name[0].lower() + name[1:]}
        return event_stream_message(headers | {":content-type": "application/json"}, self.error(failed))

    def broken(self, portion: bytes) -> bytes:
        """See `Wire`. The checksum is wrong."""
        return portion[:-1] + bytes([portion[-1] ^ 0xFF])


_NO_PARTS = {"toolResult", "toolUse", "reasoningContent"}


def _error_name(failed: HttpError) -> str:
    overloaded = "ServiceUnavailableException" if failed.status >= 500 else "ValidationException"
    return failed.code or _ERRORS.get(failed.status, overloaded)


def event_stream_message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Return one message of an AWS event stream.

    It is: its length, the length of its headers, a CRC of both, headers, payload, a CRC of everything before.
    """
    encoded = b"".join(
        struct.pack(f">B{len(name)}sBH", len(name), name.encode(), 7, len(value)) + value.encode()  # 7: a string
        for name, value in headers.items()
    )
    lengths = struct.pack(">II", 16 + len(encoded) + len(payload), len(encoded))
    message = lengths + struct.pack(">I", crc32(lengths)) + encoded + payload
    return message + struct.pack(">I", crc32(message))


def _event(kind: str, payload: Mapping[str, Any]) -> bytes:
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return event_stream_message(headers, encode(payload))


def _blocks(reply: Reply, request: ModelRequest) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.reasoning:
        blocks.append({"reasoningContent": {"reasoningText": {"text": reply.reasoning, "signature": SIGNATURE}}})
    if reply.text:
        blocks.append({"text": reply.text})
    for id_, call in request.ids_of(reply):
        blocks.append({"toolUse": {"toolUseId": id_, "name": call.name, "input": call.arguments}})
    return blocks


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "inputTokens": usage.input - usage.cached - usage.cache_written,
        "cacheReadInputTokens": usage.cached,
        "cacheWriteInputTokens": usage.cache_written,
        "outputTokens": usage.output,
        "totalTokens": usage.input + usage.output,
    }


def _part(block: Mapping[str, Any]) -> Part:
    if "text" in block:
        return Part("text", block["text"])
    if "json" in block:
        return Part("text", encode(block["json"]).decode())
    for name, kind in (("image", "image"), ("document", "file")):
        if held := block.get(name):
            source = held["source"]
            return Part(kind, "", f"{kind}/{held['format']}", source.get("bytes", ""))
    return Part("other")
