"""Embeddings of OpenAI and of Ollama: vectors that depend on the text alone."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Mapping
from typing import Any

from agentflow.testing.model_server.ollama_chat import OllamaErrors
from agentflow.testing.model_server.openai_chat import OpenAIErrors
from agentflow.testing.model_server.request import Message, ModelRequest, Part, Tool, message_of
from agentflow.testing.model_server.script import Reply
from agentflow.testing.model_server.wire import Wire, chosen, encode

DIMENSIONS = 8
"""Unless the request asks for another number."""


def embedding(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Return the vector of a text, of length 1."""
    drawn = hashlib.shake_128(text.encode()).digest(2 * dimensions)
    numbers = [one - 32_767.5 for one in struct.unpack(f">{dimensions}H", drawn)]
    length = math.hypot(*numbers)
    return [one / length for one in numbers]


class Embeddings(Wire):
    """What both have in common. A script decides about faults only; of a reply, the usage is taken."""

    def is_stream(self, verb: str, asked: bool | None) -> bool:  # noqa: ARG002, FBT001 (as `Wire`)
        """See `Wire`."""
        return False

    def messages(self, body: Mapping[str, Any]) -> list[Message]:
        """See `Wire`."""
        given = body.get("input", ())
        return [message_of("user", [Part("text", str(one))]) for one in ([given] if isinstance(given, str) else given)]

    def tools(self, body: Mapping[str, Any]) -> list[Tool]:  # noqa: ARG002 (as `Wire`)
        """See `Wire`."""
        return []

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Wire`."""
        return chosen(body, dimensions="dimensions")

    def output_schema(self, body: Mapping[str, Any]) -> None:
        """See `Wire`."""

    def stream(self, reply: Reply, request: ModelRequest) -> list[bytes]:
        """See `Wire`. There is none: the answer is one portion."""
        return [self.whole(reply, request)]


class OpenAIEmbeddings(Embeddings, OpenAIErrors):
    """``POST …/embeddings``."""

    param = "input"

    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """See `Wire`."""
        vectors: list[object] = _vectors(request)
        if request.body.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode() for one in _vectors(request)]
        items = [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(vectors)]
        usage = {"prompt_tokens": reply.usage.input, "total_tokens": reply.usage.input}
        return encode({"object": "list", "data": items, "model": request.model, "usage": usage})


class OllamaEmbeddings(Embeddings, OllamaErrors):
    """``POST /api/embed``."""

    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """See `Wire`."""
        counted = {"total_duration": 1_000_000, "load_duration": 500_000, "prompt_eval_count": reply.usage.input}
        return encode({"model": request.model, "embeddings": _vectors(request), **counted})


def _vectors(request: ModelRequest) -> list[Any]:
    dimensions = request.options.get("dimensions", DIMENSIONS)
    return [embedding(one.text, dimensions) for one in request.messages]
