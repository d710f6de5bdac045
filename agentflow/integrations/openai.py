"""Models of OpenAI by the official SDK (extra ``openai``): Chat Completions, and Responses.

    OpenAICompletionsConnection(api_key="${env:OPENAI_API_KEY}")
    OpenAICompletionsSetup(connection="openai", model="gpt-4o-mini", tools=["find_orders"])

Responses shows what a model thought (``reasoning_summary``), and keeps it over the turns of a tool loop; Chat Completions does not.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from agentflow.api.chat_models import BaseChatModelSetup
from agentflow.integrations.openai_completions import CompletionsConnection
from agentflow.integrations.openai_connection import OpenAIProtocolConnection, reasons
from agentflow.integrations.openai_responses import ResponsesConnection

_URL: Final = "https://api.openai.com/v1"
_TEMPERATURE: Final = 0.1


class _OpenAI(OpenAIProtocolConnection):
    """What is said to OpenAI itself.

    Attributes:
        organization: Whose usage it is.
        project: What it is used for.
    """

    provider: ClassVar[str] = "openai"

    organization: str = ""
    project: str = ""

    @property
    def url(self) -> str:
        """Where the server is."""
        return super().url or _URL

    def client_arguments(self) -> dict[str, Any]:
        """Return what the client is made with."""
        whose = {"organization": self.organization or None, "project": self.project or None}
        return {**super().client_arguments(), **whose}


class OpenAICompletionsConnection(_OpenAI, CompletionsConnection):
    """A way to OpenAI's Chat Completions; see `OpenAIProtocolConnection` for its arguments.

    Without an ``api_key``, that of the environment is taken (``OPENAI_API_KEY``).
    """


class OpenAIResponsesConnection(_OpenAI, ResponsesConnection):
    """A way to OpenAI's Responses; its arguments are those of `OpenAICompletionsConnection`."""


class OpenAISetup(BaseChatModelSetup):
    """A model that speaks one of OpenAI's protocols.

    Attributes:
        temperature: None: 0.1, but for models of OpenAI that reason, which take none.
        max_tokens: Most tokens of an answer.
        strict: Tools are called by their schemas and in no other way, those whose schemas strict mode does not take excepted.
        reasoning_effort: How long a model thinks: ``minimal``, ``low``, ``medium``, ``high``.
        additional_kwargs: More arguments, as the provider names them; ``extra_body`` and ``extra_headers`` as for its SDK.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    strict: bool | None = None
    reasoning_effort: str | None = None
    additional_kwargs: dict[str, Any] = {}

    @property
    def asked_model(self) -> str:
        """Which model it is in truth."""
        return self.model

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model."""
        temperature = self.temperature
        if temperature is None and not reasons(self.asked_model):
            temperature = _TEMPERATURE
        own = {
            "temperature": temperature,
            "max_tokens": self.max_tokens,
            "strict": self.strict,
            "reasoning_effort": self.reasoning_effort,
        }
        return {**{name: value for name, value in own.items() if value is not None}, **self.additional_kwargs}


class OpenAICompletionsSetup(OpenAISetup):
    """A model by Chat Completions.

    Attributes:
        logprobs: The answer says how probable its tokens were (``extra_args["logprobs"]``).
        top_logprobs: So many others for each.
    """

    model: str = "gpt-4o-mini"
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model."""
        asked = {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        made = {**{name: value for name, value in asked.items() if value is not None}, **super().model_kwargs}
        if "max_tokens" in made and reasons(self.asked_model):  # they have another name for it
            made["max_completion_tokens"] = made.pop("max_tokens")
        return made


class OpenAIResponsesSetup(OpenAISetup):
    """A model by Responses.

    Attributes:
        reasoning_summary: What a model thought is shown: ``auto``, ``concise``, ``detailed``.
    """

    model: str = "gpt-4o-mini"
    reasoning_summary: str | None = None

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model."""
        shown = {} if self.reasoning_summary is None else {"reasoning_summary": self.reasoning_summary}
        return {**shown, **super().model_kwargs}
