"""OpenAI's Chat Completions, as OpenAI, Azure OpenAI, DashScope and all the compatible servers speak them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

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
from agentflow.testing.model_server.wire import MESSAGES, Portions, Wire, chosen, encode, listed, pieces, sse

_ROLES: dict[str, Role] = {"developer": "system", "system": "system", "assistant": "assistant", "tool": "tool"}
_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", None),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("service_unavailable_error", None),
}
_TOO_LONG = (
    "This model's maximum context length is 128000 tokens. However, your messages resulted in 130001 tokens. "
    "Please reduce the length of the messages."
)


class OpenAIErrors(Wire):
    """How errors look on all paths of OpenAI and of those who copy them."""

    param = "messages"
    too_long = _TOO_LONG

    def error(self, failed: HttpError) -> bytes:
        """See `Wire`. Azure has the status where OpenAI has a word."""
        message = failed.message or MESSAGES.get(failed.status, "")
        if self.provider == "azure" and not failed.code:
            return encode({"error": {"code": str(failed.status), "message": message}})
        known = ("server_error" if failed.status >= 500 else "invalid_request_error", None)
        kind, code = _TYPES.get(failed.status, known)
        if failed.code == "context_length_exceeded":
            return encode({"error": {"message": message, "type": kind, "param": self.param, "code": failed.code}})
        return encode({"error": {"message": message, "type": kind, "param": None, "code": failed.code or code}})

    def context_too_long(self) -> HttpError:
        """See `Wire`."""
        if self.provider == "dashscope":
            return HttpError(400, "invalid_parameter_error", "<400> Range of input length should be [1, 129024]")
        return HttpError(400, "context_length_exceeded", self.too_long)

    def unauthorized(self, key: str) -> HttpError:
        """See `Wire`. Azure and DashScope do not show the key; here they do, since a proxy before them may."""
        return HttpError(
            401,
            message=f"Incorrect API key provided: {key}. You can find your API key at https://platform.openai.com/account/api-keys.",
        )


class OpenAIChat(OpenAIErrors):
    """``POST …/chat/completions``."""

    def messages(self, body: Mapping[str, Any]) -> list[Message]:
        """See `Wire`."""
        return [
            message_of(
                _ROLES.get(one["role"], "user"),
                [_part(part) for part in listed(one.get("content"))],
                tool_calls=[
                    call_of(call["function"]["name"], call["function"]["arguments"], call["id"])
                    for call in one.get("tool_calls") or ()
                ],
                tool_call_id=one.get("tool_call_id") or "",
                reasoning=one.get("reasoning_content") or "",
            )
            for one in body.get("messages", ())
        ]

    def tools(self, body: Mapping[str, Any]) -> list[Tool]:
        """See `Wire`."""
        functions = [one["function"] for one in body.get("tools") or () if one["type"] == "function"]
        return [Tool(one["name"], one.get("description", ""), one.get("parameters", {})) for one in functions]

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Wire`."""
        names = {one: one for one in ("temperature", "top_p", "max_tokens", "stop", "seed", "tool_choice")}
        return chosen(body, **names) | chosen(body, max_tokens="max_completion_tokens")

    def output_schema(self, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See `Wire`."""
        asked = (body.get("response_format") or {}).get("json_schema")
        return asked["schema"] if asked else None

    def refused_schema(self, body: Mapping[str, Any]) -> HttpError | None:
        """See `Wire`."""
        asked = (body.get("response_format") or {}).get("json_schema")
        return openai_refusal(asked, "response_format") if asked else None

    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """See `Wire`."""
        is_refusal = reply.ended_by == "refusal"
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if is_refusal else reply.text or (None if reply.tool_calls else ""),
            "refusal": reply.text if is_refusal else None,
        }
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            message["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": call.name, "arguments": call.arguments_text}}
                for id_, call in request.ids_of(reply)
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(reply)}
        return encode(_envelope(request, "chat.completion") | {"choices": [choice], "usage": _usage(reply.usage)})

    def stream(self, reply: Reply, request: ModelRequest) -> list[bytes]:
        """See `Wire`."""
        envelope = _envelope(request, "chat.completion.chunk")
        if request.wants_usage:
            envelope["usage"] = None  # of every chunk but the last

        def chunk(delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return sse(envelope | {"choices": [choice]})

        portions = Portions()
        portions.frame(chunk({"role": "assistant", "content": "", "refusal": None}))
        for piece in pieces(reply.reasoning, reply.chunk_count):
            portions.content(chunk({"reasoning_content": piece}))
        for piece in pieces(reply.text, reply.chunk_count):
            portions.content(chunk({"refusal" if reply.ended_by == "refusal" else "content": piece}))
        for place, (id_, call) in enumerate(request.ids_of(reply)):
            begun = {"index": place, "id": id_, "type": "function", "function": {"name": call.name, "arguments": ""}}
            portions.frame(chunk({"tool_calls": [begun]}))
            for piece in pieces(call.arguments_text, reply.chunk_count):
                portions.content(chunk({"tool_calls": [{"index": place, "function": {"arguments": piece}}]}))
        portions.frame(chunk({}, _finish_reason(reply)))
        if request.wants_usage:
            portions.frame(sse(envelope | {"choices": [], "usage": _usage(reply.usage)}))
        portions.frame(b"data: [DONE]\n\n")
        return portions.end()


def _part(part: Mapping[str, Any]) -> Part:
    """Return one part of a message of Chat Completions."""
    match part.get("type"):
        case "text" | "refusal":
            return Part("text", part.get("text") or part.get("refusal") or "")
        case "image_url":
            return part_of_url("image", part["image_url"]["url"])
        case "input_audio":
            audio = part["input_audio"]
            return Part("audio", media_type=f"audio/{audio['format']}", base64=audio["data"])
        case "file":
            return part_of_url("file", part["file"].get("file_data") or part["file"].get("file_id", ""))
    return Part("other")


def _envelope(request: ModelRequest, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request.number}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "service_tier": "default",
        "system_fingerprint": "fp_model_server",
    }


def _finish_reason(reply: Reply) -> str:
    return "stop" if reply.ended_by == "refusal" else reply.ended_by


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_written},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
