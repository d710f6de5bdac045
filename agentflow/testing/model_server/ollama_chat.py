"""Ollama's chat, in JSON lines."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from agentflow.testing.model_server.request import Message, ModelRequest, Part, Role, Tool, call_of, message_of
from agentflow.testing.model_server.script import HttpError, Reply
from agentflow.testing.model_server.wire import MESSAGES, Portions, Wire, chosen, encode, pieces

_ROLES: dict[str, Role] = {"system": "system", "assistant": "assistant", "tool": "tool"}


class OllamaErrors(Wire):
    """How errors look on all paths of Ollama: one field."""

    stream_type = "application/x-ndjson"

    def error(self, failed: HttpError) -> bytes:
        """See `Wire`."""
        return encode({"error": failed.message or MESSAGES.get(failed.status, "")})

    def context_too_long(self) -> HttpError:
        """See `Wire`. By default Ollama cuts the input without a word; this is what it says with ``truncate: false``."""
        return HttpError(400, message="the input length exceeds the context length")

    def unauthorized(self, key: str) -> HttpError:
        """See `Wire`."""
        return HttpError(401, message=f"unauthorized: invalid key {key}")

    def error_in_stream(self, failed: HttpError) -> bytes:
        """See `Wire`."""
        return self.error(failed) + b"\n"


class OllamaChat(OllamaErrors):
    """``POST /api/chat``."""

    def is_stream(self, verb: str, asked: bool | None) -> bool:  # noqa: ARG002, FBT001 (as `Wire`)
        """See `Wire`. Ollama streams if nothing else is said."""
        return asked is not False

    def messages(self, body: Mapping[str, Any]) -> list[Message]:
        """See `Wire`."""
        return [
            message_of(
                _ROLES.get(one["role"], "user"),
                [
                    Part("text", one.get("content") or ""),
                    *(Part("image", base64=image) for image in one.get("images") or ()),
                ],
                tool_calls=[
                    call_of(call["function"]["name"], call["function"]["arguments"], call.get("id", ""))
                    for call in one.get("tool_calls") or ()
                ],
                tool_call_id=one.get("tool_call_id") or one.get("tool_name") or "",
                reasoning=one.get("thinking") or "",
            )
            for one in body.get("messages", ())
        ]

    def tools(self, body: Mapping[str, Any]) -> list[Tool]:
        """See `Wire`."""
        functions = [one["function"] for one in body.get("tools") or ()]
        return [Tool(one["name"], one.get("description", ""), one.get("parameters", {})) for one in functions]

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Wire`."""
        names = {one: one for one in ("temperature", "top_p", "stop", "seed")}
        return chosen(body.get("options") or {}, max_tokens="num_predict", **names)

    def output_schema(self, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See `Wire`."""
        asked = body.get("format")
        return asked if isinstance(asked, dict) else None

    def refused(self, reply: Reply) -> HttpError | None:
        """See `Wire`. Ollama parses the arguments itself."""
        wrong = next((call for call in reply.tool_calls if isinstance(call.arguments, str)), None)
        if wrong is None:
            return None
        return HttpError(
            500, message=f"error parsing tool call: raw='{wrong.arguments}', err=unexpected end of JSON input"
        )

    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """See `Wire`."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.reasoning:
            message["thinking"] = reply.reasoning
        if reply.tool_calls:
            message["tool_calls"] = _calls(reply, request)
        return encode(_envelope(request) | {"message": message} | _end(reply))

    def stream(self, reply: Reply, request: ModelRequest) -> list[bytes]:
        """See `Wire`."""
        envelope = _envelope(request)

        def line(**fields: object) -> bytes:
            return encode(envelope | {"message": {"role": "assistant", "content": "", **fields}, "done": False}) + b"\n"

        portions = Portions()
        for piece in pieces(reply.reasoning, reply.chunk_count):
            portions.content(line(thinking=piece))
        for piece in pieces(reply.text, reply.chunk_count):
            portions.content(line(content=piece))
        for call in _calls(reply, request):
            portions.content(line(tool_calls=[call]))
        portions.frame(encode(envelope | {"message": {"role": "assistant", "content": ""}} | _end(reply)) + b"\n")
        return portions.end()


def _envelope(request: ModelRequest) -> dict[str, Any]:
    return {"model": request.model, "created_at": dt.datetime.now(dt.UTC).isoformat()}


def _calls(reply: Reply, request: ModelRequest) -> list[dict[str, Any]]:
    return [
        {"id": id_, "function": {"index": place, "name": call.name, "arguments": call.arguments}}
        for place, (id_, call) in enumerate(request.ids_of(reply))
    ]


def _end(reply: Reply) -> dict[str, Any]:
    """Return the fields of the last object. Ollama knows no cached tokens, and counts reasoning as output."""
    return {
        "done": True,
        "done_reason": "length" if reply.ended_by == "length" else "stop",
        "total_duration": 5_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": reply.usage.input,
        "prompt_eval_duration": 1_000_000,
        "eval_count": reply.usage.output,
        "eval_duration": 3_000_000,
    }
