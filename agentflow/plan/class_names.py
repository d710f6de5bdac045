"""Short names of the resource classes that come with agentflow: what ``class:`` may say in place of ``package.module.Class``.

A package adds names of its own by entry points: group ``agentflow.chat_model_connection`` (and so on, as `ResourceType` has them).
"""

from __future__ import annotations

from typing import Final

from agentflow.api.resource_names import ResourceName
from agentflow.api.resources import ResourceType

_CHAT: Final = ResourceName.ChatModel
BARE_SETUP: Final = "agentflow.api.chat_models.BaseChatModelSetup"
"""Class of models without arguments of their own."""

CLASS_NAMES: Final[dict[ResourceType, dict[str, str]]] = {
    ResourceType.CHAT_MODEL_CONNECTION: {
        "openai": _CHAT.OPENAI_COMPLETIONS_CONNECTION,
        "openai_responses": _CHAT.OPENAI_RESPONSES_CONNECTION,
        "openai_compatible": _CHAT.OPENAI_COMPATIBLE_CONNECTION,
        "azure_openai": _CHAT.AZURE_OPENAI_CONNECTION,
        "anthropic": _CHAT.ANTHROPIC_CONNECTION,
        "tongyi": _CHAT.TONGYI_CONNECTION,
        "vllm": _CHAT.VLLM_CONNECTION,
        "ollama": _CHAT.OLLAMA_CONNECTION,
        "gemini": _CHAT.GEMINI_CONNECTION,
        "bedrock": _CHAT.BEDROCK_CONNECTION,
        "litellm": _CHAT.LITELLM_CONNECTION,
        "scripted": _CHAT.SCRIPTED_CONNECTION,
        "recorded": _CHAT.RECORDED_CONNECTION,
    },
    ResourceType.CHAT_MODEL: {
        "openai": _CHAT.OPENAI_COMPLETIONS_SETUP,
        "openai_responses": _CHAT.OPENAI_RESPONSES_SETUP,
        "openai_compatible": _CHAT.OPENAI_COMPATIBLE_SETUP,
        "azure_openai": _CHAT.AZURE_OPENAI_SETUP,
        "anthropic": _CHAT.ANTHROPIC_SETUP,
        "tongyi": _CHAT.TONGYI_SETUP,
        "vllm": _CHAT.VLLM_SETUP,
        "ollama": _CHAT.OLLAMA_SETUP,
        "gemini": _CHAT.GEMINI_SETUP,
        "bedrock": _CHAT.BEDROCK_SETUP,
        "litellm": _CHAT.LITELLM_SETUP,
        "scripted": BARE_SETUP,
        "recorded": BARE_SETUP,
    },
    ResourceType.MCP_SERVER: {"mcp": ResourceName.MCP_SERVER},
}
