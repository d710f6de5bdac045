"""Names of the resource classes that come with agentflow, for descriptors; each needs the extra of its provider."""

from __future__ import annotations

from typing import Final

_OPENAI: Final = "agentflow.integrations.openai"
_AZURE: Final = "agentflow.integrations.azure_openai"
_ANTHROPIC: Final = "agentflow.integrations.anthropic"
_OLLAMA: Final = "agentflow.integrations.ollama"
_COMPATIBLE: Final = "agentflow.integrations.openai_compatible"
_GEMINI: Final = "agentflow.integrations.google_genai"
_BEDROCK: Final = "agentflow.integrations.aiobotocore_bedrock"
_LITELLM: Final = "agentflow.integrations.litellm"


class ResourceName:
    """``ResourceDescriptor(ResourceName.ChatModel.OPENAI_COMPLETIONS_CONNECTION, api_key="${env:OPENAI_API_KEY}")``."""

    class ChatModel:
        """Connections and setups of chat models."""

        OPENAI_COMPLETIONS_CONNECTION: Final = f"{_OPENAI}.OpenAICompletionsConnection"
        OPENAI_COMPLETIONS_SETUP: Final = f"{_OPENAI}.OpenAICompletionsSetup"
        OPENAI_RESPONSES_CONNECTION: Final = f"{_OPENAI}.OpenAIResponsesConnection"
        OPENAI_RESPONSES_SETUP: Final = f"{_OPENAI}.OpenAIResponsesSetup"
        AZURE_OPENAI_CONNECTION: Final = f"{_AZURE}.AzureOpenAIConnection"
        AZURE_OPENAI_SETUP: Final = f"{_AZURE}.AzureOpenAISetup"
        ANTHROPIC_CONNECTION: Final = f"{_ANTHROPIC}.AnthropicConnection"
        ANTHROPIC_SETUP: Final = f"{_ANTHROPIC}.AnthropicSetup"
        OLLAMA_CONNECTION: Final = f"{_OLLAMA}.OllamaConnection"
        OLLAMA_SETUP: Final = f"{_OLLAMA}.OllamaSetup"
        TONGYI_CONNECTION: Final = f"{_COMPATIBLE}.TongyiConnection"
        TONGYI_SETUP: Final = f"{_COMPATIBLE}.TongyiSetup"
        VLLM_CONNECTION: Final = f"{_COMPATIBLE}.VLLMConnection"
        VLLM_SETUP: Final = f"{_COMPATIBLE}.VLLMSetup"
        OPENAI_COMPATIBLE_CONNECTION: Final = f"{_COMPATIBLE}.OpenAICompatibleConnection"
        OPENAI_COMPATIBLE_SETUP: Final = f"{_COMPATIBLE}.OpenAICompatibleSetup"
        GEMINI_CONNECTION: Final = f"{_GEMINI}.GeminiConnection"
        GEMINI_SETUP: Final = f"{_GEMINI}.GeminiSetup"
        BEDROCK_CONNECTION: Final = f"{_BEDROCK}.BedrockConnection"
        BEDROCK_SETUP: Final = f"{_BEDROCK}.BedrockSetup"
        LITELLM_CONNECTION: Final = f"{_LITELLM}.LiteLLMConnection"
        LITELLM_SETUP: Final = f"{_LITELLM}.LiteLLMSetup"
        SCRIPTED_CONNECTION: Final = "agentflow.testing.scripted_models.ScriptedConnection"
        RECORDED_CONNECTION: Final = "agentflow.testing.recorded_models.RecordedConnection"

    MCP_SERVER: Final = "agentflow.integrations.mcp.MCPServer"
