"""Which path belongs to which protocol."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from agentflow.testing.model_server.anthropic_messages import AnthropicMessages
from agentflow.testing.model_server.bedrock_converse import BedrockConverse
from agentflow.testing.model_server.embeddings import OllamaEmbeddings, OpenAIEmbeddings
from agentflow.testing.model_server.gemini_content import GeminiContent
from agentflow.testing.model_server.ollama_chat import OllamaChat
from agentflow.testing.model_server.openai_chat import OpenAIChat
from agentflow.testing.model_server.openai_responses import OpenAIResponses
from agentflow.testing.model_server.wire import Wire

_DEPLOYMENT = "/openai/deployments/(?P<model>[^/]+)"
_ROUTES: tuple[tuple[str, Wire], ...] = (
    ("/v1/chat/completions", OpenAIChat("openai")),
    (f"(?:{_DEPLOYMENT}|/openai/v1)/chat/completions", OpenAIChat("azure")),
    ("/compatible-mode/v1/chat/completions", OpenAIChat("dashscope")),
    ("/v1/responses", OpenAIResponses("openai", "responses")),
    ("/openai(?:/v1)?/responses", OpenAIResponses("azure", "responses")),
    ("/v1/messages", AnthropicMessages("anthropic")),
    ("/api/chat", OllamaChat("ollama")),
    (
        r"/v\d\w*/(?:.+/)?models/(?P<model>[^/:]+):(?P<verb>generateContent|streamGenerateContent)",
        GeminiContent("gemini"),
    ),
    ("/model/(?P<model>.+)/(?P<verb>converse|converse-stream)", BedrockConverse("bedrock")),
    ("/v1/embeddings", OpenAIEmbeddings("openai", "embeddings")),
    (f"(?:{_DEPLOYMENT}|/openai/v1)/embeddings", OpenAIEmbeddings("azure", "embeddings")),
    ("/compatible-mode/v1/embeddings", OpenAIEmbeddings("dashscope", "embeddings")),
    ("/api/embed", OllamaEmbeddings("ollama", "embeddings")),
)


class Route(NamedTuple):
    """A protocol, and what the path says beside it."""

    wire: Wire
    named: Mapping[str, str]


@functools.lru_cache(maxsize=1_024)
def route_of(path: str) -> Route | None:
    """Return the route of a decoded path; None: nobody lives there."""
    for pattern, wire in _ROUTES:
        if found := re.fullmatch(pattern, path):
            return Route(wire, {name: value for name, value in found.groupdict().items() if value is not None})
    return None
