"""Names of the resource classes that come with agentflow, for descriptors; each needs the extra of its provider.

They are registered as those of any package are, by entry points (`ResourceDescriptor`).
"""

from __future__ import annotations

from typing import Final


class ResourceName:
    """``ResourceDescriptor(ResourceName.ChatModel.OPENAI_COMPLETIONS_CONNECTION, api_key="${env:OPENAI_API_KEY}")``."""

    class ChatModel:
        """Connections and setups of chat models."""

        OPENAI_COMPLETIONS_CONNECTION: Final = "openai"
        OPENAI_COMPLETIONS_SETUP: Final = "openai"
        OPENAI_RESPONSES_CONNECTION: Final = "openai_responses"
        OPENAI_RESPONSES_SETUP: Final = "openai_responses"
        AZURE_OPENAI_CONNECTION: Final = "azure_openai"
        AZURE_OPENAI_SETUP: Final = "azure_openai"
        ANTHROPIC_CONNECTION: Final = "anthropic"
        ANTHROPIC_SETUP: Final = "anthropic"
        OLLAMA_CONNECTION: Final = "ollama"
        OLLAMA_SETUP: Final = "ollama"
        TONGYI_CONNECTION: Final = "tongyi"
        TONGYI_SETUP: Final = "tongyi"
        VLLM_CONNECTION: Final = "vllm"
        VLLM_SETUP: Final = "vllm"
        OPENAI_COMPATIBLE_CONNECTION: Final = "openai_compatible"
        OPENAI_COMPATIBLE_SETUP: Final = "openai_compatible"
        GEMINI_CONNECTION: Final = "gemini"
        GEMINI_SETUP: Final = "gemini"
        BEDROCK_CONNECTION: Final = "bedrock"
        BEDROCK_SETUP: Final = "bedrock"
        LITELLM_CONNECTION: Final = "litellm"
        LITELLM_SETUP: Final = "litellm"
        SCRIPTED_CONNECTION: Final = "scripted"
        SCRIPTED_SETUP: Final = "scripted"
        RECORDED_CONNECTION: Final = "recorded"
        RECORDED_SETUP: Final = "recorded"

    MCP_SERVER: Final = "mcp"
