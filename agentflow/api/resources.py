"""Resources an agent declares: models, tools, prompts. A descriptor names a class and its arguments; it is data."""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class ResourceType(enum.StrEnum):
    """Kinds of resources."""

    CHAT_MODEL = "chat_model"
    CHAT_MODEL_CONNECTION = "chat_model_connection"
    TOOL = "tool"
    EMBEDDING_MODEL = "embedding_model"
    EMBEDDING_MODEL_CONNECTION = "embedding_model_connection"
    VECTOR_STORE = "vector_store"
    PROMPT = "prompt"
    MCP_SERVER = "mcp_server"
    SKILLS = "skills"


class ResourceDescriptor(msgspec.Struct, frozen=True):
    """Names a resource class and its arguments; built lazily by the runtime, never at plan time.

    Args:
        clazz: ``"package.module.Class"``.
        arguments: Constructor arguments; JSON values only.
    """

    clazz: str
    arguments: dict[str, Any] = {}
