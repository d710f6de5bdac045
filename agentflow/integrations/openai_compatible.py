"""Models behind other servers that speak OpenAI's Chat Completions, by OpenAI's SDK (extra ``openai``): any, vLLM, DashScope (Tongyi).

OpenAICompatibleConnection(base_url="https://api.deepseek.com/v1", api_key="${env:DEEPSEEK_API_KEY}")
VLLMConnection()
TongyiConnection(api_key="${env:DASHSCOPE_API_KEY}")
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final

from agentflow.errors import NotConfigured
from agentflow.integrations.openai import OpenAICompletionsSetup
from agentflow.integrations.openai_completions import CompletionsConnection

_NO_KEY: Final = "EMPTY"
_VLLM_URL: Final = "http://localhost:8000/v1"
_DASHSCOPE_URL: Final = "https://dashscope.aliyuncs.com/compatible-mode/v1"
_DASHSCOPE_KEY: Final = "DASHSCOPE_API_KEY"


class OpenAICompatibleConnection(CompletionsConnection):
    """A way to a server that speaks Chat Completions; see `OpenAIProtocolConnection` for its other arguments.

    What its models think before they call tools goes back with the results: those of DeepSeek, Moonshot and others want it.

    Attributes:
        api_key: Its key; many servers of one's own want none.
        structured_output: It takes a JSON schema as ``response_format``.
    """

    provider: ClassVar[str] = "openai_compatible"
    returns_reasoning: ClassVar[bool] = True

    api_key: str = _NO_KEY
    structured_output: bool = False

    def client_arguments(self) -> dict[str, Any]:
        """Return what the client is made with.

        Raises:
            NotConfigured: Nobody has said where the server is: the SDK would ask OpenAI.
        """
        if not self.url:
            raise NotConfigured(f"{self!r} does not know where its server is", fix="give it a base_url")
        return {
            **super().client_arguments(),
            "api_key": self.api_key or _NO_KEY,
        }  # never that of OpenAI in the environment

    def supports_native_structured_output(self, model: str) -> bool:  # noqa: ARG002 (the server decides)
        """Return whether the server takes a JSON schema."""
        return self.structured_output


class OpenAICompatibleSetup(OpenAICompletionsSetup):
    """A model behind such a server.

    Attributes:
        model: Its name there.
        extract_reasoning: What the model thought is kept, if the server shows it.
    """

    model: str = ""
    extract_reasoning: bool = True

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {"extract_reasoning": self.extract_reasoning, **super().model_kwargs}


class VLLMConnection(OpenAICompatibleConnection):
    """A way to vLLM."""

    provider: ClassVar[str] = "vllm"

    base_url: str = _VLLM_URL
    structured_output: bool = True


class VLLMSetup(OpenAICompatibleSetup):
    """A model that vLLM serves."""


class TongyiConnection(OpenAICompatibleConnection):
    """A way to the models of Tongyi (Qwen) in Alibaba's DashScope.

    Attributes:
        api_key: Its key; without one, that of the environment (``DASHSCOPE_API_KEY``).
        request_timeout: The same as ``timeout``, by the name that Flink Agents has for it.
    """

    provider: ClassVar[str] = "dashscope"

    api_key: str = ""
    base_url: str = _DASHSCOPE_URL
    request_timeout: float | str | None = None

    def client_arguments(self) -> dict[str, Any]:
        """Return what the client is made with."""
        arguments = super().client_arguments()
        key = self.api_key or os.environ.get(_DASHSCOPE_KEY)
        if not key:
            raise NotConfigured(
                f"{self!r} has no key", fix=f'give it api_key="${{env:{_DASHSCOPE_KEY}}}", or set {_DASHSCOPE_KEY}'
            )
        return {**arguments, "api_key": key}


class TongyiSetup(OpenAICompatibleSetup):
    """A model of Tongyi."""

    model: str = "qwen-plus"
    temperature: float | None = 0.7
