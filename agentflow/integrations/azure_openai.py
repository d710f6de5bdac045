"""Models of OpenAI in Azure by the official SDK (extra ``openai``).

AzureOpenAIConnection(api_key="${env:AZURE_OPENAI_API_KEY}", azure_endpoint="https://mine.openai.azure.com", api_version="2024-10-21")
AzureOpenAISetup(connection="azure", model="my-deployment", model_of_azure_deployment="gpt-4o")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from agentflow.integrations.openai import OpenAICompletionsSetup
from agentflow.integrations.openai_completions import CompletionsConnection

if TYPE_CHECKING:
    from openai import AsyncAzureOpenAI

_SCHEMAS_SINCE: Final = "2024-08-01"


class AzureOpenAIConnection(CompletionsConnection):
    """A way to deployments in Azure; see `OpenAIProtocolConnection` for its other arguments.

    Attributes:
        api_version: Version of the API, a date.
        azure_endpoint: Where the resource is.
    """

    provider: ClassVar[str] = "azure.ai.openai"

    api_version: str = ""
    azure_endpoint: str = ""

    @property
    def url(self) -> str:
        """Where the resource is."""
        return self.azure_endpoint

    def new_client(self) -> AsyncAzureOpenAI:
        """Make the client; what is missing here, the SDK takes from the environment."""
        from openai import AsyncAzureOpenAI

        arguments = self.client_arguments() | {"azure_endpoint": self.azure_endpoint or None}
        client: AsyncAzureOpenAI = AsyncAzureOpenAI(**arguments, api_version=self.api_version or None)
        return client

    def supports_native_structured_output(self, model: str) -> bool:  # noqa: ARG002 (a deployment does not tell its model)
        """Return whether the API has schemas; of a deployment whose model has none, say ``prompt`` in its setup."""
        return not self.api_version or self.api_version >= _SCHEMAS_SINCE


class AzureOpenAISetup(OpenAICompletionsSetup):
    """A deployment.

    Attributes:
        model: Name of the deployment.
        model_of_azure_deployment: What is deployed there, such as ``gpt-4o``.
    """

    model: str = ""
    model_of_azure_deployment: str | None = None

    @property
    def asked_model(self) -> str:
        """Which model it is in truth."""
        return self.model_of_azure_deployment or self.model
