"""Gemini's generateContent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from agentflow.testing.model_server.request import Message, ModelRequest, Part, Role, Tool, call_of, message_of
from agentflow.testing.model_server.script import HttpError, Reply, Usage
from agentflow.testing.model_server.wire import MESSAGES, Portions, Wire, chosen, encode, pieces, sse

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBtb2RlbCBzZXJ2ZXI="
"""Of the first call of a tool in a reply that has reasoning; a client sends it back."""


class GeminiContent(Wire):
    """``POST …/models/{model}:generateContent`` and ``:streamGenerateContent?alt=sse``.

    Arguments of a tool that are no JSON become the finish reason MALFORMED_FUNCTION_CALL, without the call. A refusal is the finish
    reason SAFETY; ``content_filter`` blocks the prompt, and there is no candidate.
    """

    def is_stream(self, verb: str, asked: bool | None) -> bool:  # noqa: ARG002, FBT001 (as `Wire`)
        """See `Wire`."""
        return verb == "streamGenerateContent"

    def messages(self, body: Mapping[str, Any]) -> list[Message]:
        """See `Wire`."""
        system = [_part(_camel(one)) for one in (_camel(body).get("systemInstruction") or {}).get("parts", ())]
        found = [message_of("system", system)] if system else []
        for one in body.get("contents", ()):
            given = [_camel(part) for part in one.get("parts", ())]
            for result in (part["functionResponse"] for part in given if "functionResponse" in part):
                text = Part("text", encode(result.get("response", {})).decode())
                found.append(message_of("tool", [text], tool_call_id=result.get("id") or result["name"]))
            parts = [_part(part) for part in given if not part.get("thought") and not _NO_PARTS & part.keys()]
            calls = [part["functionCall"] for part in given if "functionCall" in part]
            thought = "".join(part.get("text", "") for part in given if part.get("thought"))
            role: Role = "assistant" if one.get("role") == "model" else "user"
            if parts or calls or thought:
                asked = [call_of(call["name"], call.get("args") or {}, call.get("id", "")) for call in calls]
                found.append(message_of(role, parts, tool_calls=asked, reasoning=thought))
        return found

    def tools(self, body: Mapping[str, Any]) -> list[Tool]:
        """See `Wire`."""
        functions = [one for tool in body.get("tools") or () for one in _camel(tool).get("functionDeclarations", ())]
        return [
            Tool(
                one["name"], one.get("description", ""), one.get("parametersJsonSchema") or one.get("parameters") or {}
            )
            for one in map(_camel, functions)
        ]

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Wire`."""
        config = _camel(_camel(body).get("generationConfig") or {})
        found = chosen(config, max_tokens="maxOutputTokens", top_p="topP", stop="stopSequences")
        return (
            found
            | chosen(config, temperature="temperature", seed="seed")
            | chosen(_camel(body), tool_choice="toolConfig")
        )

    def output_schema(self, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See `Wire`."""
        config = _camel(_camel(body).get("generationConfig") or {})
        return config.get("responseJsonSchema") or config.get("responseSchema")

    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """See `Wire`."""
        return encode(_response(reply, request, _parts(reply, request), is_last=True))

    def stream(self, reply: Reply, request: ModelRequest) -> list[bytes]:
        """See `Wire`. A call of a tool comes whole."""
        portions = Portions()
        for part in _parts(reply, request):
            texts = pieces(part.get("text", ""), reply.chunk_count)
            for shown in [part | {"text": piece} for piece in texts] or [part]:
                portions.content(sse(_response(reply, request, [shown], is_last=False)))
        portions.frame(sse(_response(reply, request, [], is_last=True)))
        return portions.end()

    def error(self, failed: HttpError) -> bytes:
        """See `Wire`. How long to wait stands in the details."""
        error: dict[str, Any] = {
            "code": failed.status,
            "message": failed.message or MESSAGES.get(failed.status, ""),
            "status": failed.code or _STATUSES.get(failed.status, "UNKNOWN"),
        }
        if failed.retry_after_s is not None:
            retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{failed.retry_after_s:g}s"}
            error["details"] = [retry]
        return encode({"error": error})

    def context_too_long(self) -> HttpError:
        """See `Wire`."""
        message = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
        return HttpError(400, message=message)

    def unauthorized(self, key: str) -> HttpError:
        """See `Wire`. Gemini does not show the key; here it does, since a proxy before it may."""
        return HttpError(401, message=f"API key not valid: {key}. Please pass a valid API key.")


_NO_PARTS = {"functionResponse", "functionCall"}
_FINISH_REASONS = {"length": "MAX_TOKENS", "refusal": "SAFETY"}


def _camel(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's fields by their JSON names: Google takes both these and those of protobuf, and its client mixes them."""
    return {re.sub("_([a-z])", lambda letter: letter[1].upper(), name): value for name, value in source.items()}


def _is_malformed(reply: Reply) -> bool:
    return any(isinstance(call.arguments, str) for call in reply.tool_calls)


def _parts(reply: Reply, request: ModelRequest) -> list[dict[str, Any]]:
    if reply.ended_by == "content_filter":
        return []
    parts: list[dict[str, Any]] = []
    if reply.reasoning:
        parts.append({"text": reply.reasoning, "thought": True})
    if reply.text:
        parts.append({"text": reply.text})
    for place, (id_, call) in enumerate(() if _is_malformed(reply) else request.ids_of(reply)):
        part: dict[str, Any] = {"functionCall": {"id": id_, "name": call.name, "args": call.arguments}}
        parts.append(part | ({"thoughtSignature": SIGNATURE} if reply.reasoning and not place else {}))
    return parts


def _response(reply: Reply, request: ModelRequest, parts: list[dict[str, Any]], *, is_last: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    response: dict[str, Any] = {
        "usageMetadata": _usage(reply.usage),
        "modelVersion": request.model,
        "responseId": f"response-{request.number}",
    }
    if reply.ended_by == "content_filter":
        return response | {"promptFeedback": {"blockReason": "SAFETY"}}
    if is_last and _is_malformed(reply):
        wrong = next(call for call in reply.tool_calls if isinstance(call.arguments, str))
        candidate["finishReason"] = "MALFORMED_FUNCTION_CALL"
        candidate["finishMessage"] = f"Malformed function call: {wrong.name}({wrong.arguments}"
    elif is_last:
        candidate["finishReason"] = _FINISH_REASONS.get(reply.ended_by, "STOP")
    return response | {"candidates": [candidate]}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "promptTokenCount": usage.input,
        "cachedContentTokenCount": usage.cached,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": usage.input + usage.output,
    }


_URL_SAFE = str.maketrans("-_", "+/")  # Google reads both alphabets, and its SDK writes this one


def _part(part: Mapping[str, Any]) -> Part:
    if "text" in part:
        return Part("text", part["text"])
    held = part.get("inlineData") or part.get("fileData")
    if held is None:
        return Part("other")
    held = _camel(held)
    media_type = held.get("mimeType", "")
    kind = media_type.partition("/")[0]
    data = held.get("data", "").translate(_URL_SAFE)
    return Part(kind if kind in {"image", "audio"} else "file", "", media_type, data, held.get("fileUri", ""))
