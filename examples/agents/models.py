"""Which model an example talks to: ``--model scripted`` (the default), or one of a provider.

    --model openai:gpt-5-mini          OPENAI_API_KEY       pip install 'agentflow[openai]'
    --model anthropic:claude-sonnet-5-5  ANTHROPIC_API_KEY  pip install 'agentflow[anthropic]'
    --model ollama:qwen3               a local Ollama       pip install 'agentflow[ollama]'

A scripted model says what a file in `examples/agents/scripts` says, so an example runs without a key and without a network, and always in
the same way. Nothing else of the example changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentflow import AgentflowError, ResourceDescriptor, ResourceType

CONNECTION = "provider"
SCRIPTS = Path(__file__).parent / "scripts"

# What a connection is made with. Keys are references: they are resolved in the worker, and are in no plan, log or file.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "openai": {"api_key": "${env:OPENAI_API_KEY}"},
    "openai_responses": {"api_key": "${env:OPENAI_API_KEY}"},
    "anthropic": {"api_key": "${env:ANTHROPIC_API_KEY}"},
    "gemini": {"api_key": "${env:GEMINI_API_KEY}"},
    "tongyi": {"api_key": "${env:DASHSCOPE_API_KEY}"},
    "bedrock": {},
    "litellm": {},
    "ollama": {"request_timeout": 120},
    "vllm": {},
}


class ChosenModel:
    """The model of an example.

    Args:
        text: ``scripted``, or ``PROVIDER:MODEL``.
        script: File in `SCRIPTS` that a scripted model speaks by.

    Raises:
        ValueError: It is neither.
    """

    def __init__(self, text: str, script: str) -> None:
        self.provider, _, self.model = text.partition(":")
        self.is_scripted = text == "scripted"
        if self.is_scripted:
            self.model, arguments = "scripted", {"script": str(SCRIPTS / script)}
        elif self.model and self.provider in ARGUMENTS:
            arguments = ARGUMENTS[self.provider]
        else:
            raise ValueError(f"{text!r} is neither 'scripted' nor PROVIDER:MODEL with one of {', '.join(ARGUMENTS)}")
        self.connection = ResourceDescriptor(self.provider, arguments)

    @property
    def resource(self) -> tuple[str, ResourceType, ResourceDescriptor]:
        """The connection, as `AgentsExecutionEnvironment.add_resource` and `Engine` take it."""
        return CONNECTION, ResourceType.CHAT_MODEL_CONNECTION, self.connection

    def setup(self, **arguments: Any) -> ResourceDescriptor:  # noqa: ANN401 (arguments of a setup)
        """Return a chat model with a prompt, tools, policies."""
        return ResourceDescriptor(self.provider, connection=CONNECTION, model=self.model, **arguments)


def model_from_command_line(description: str | None, script: str) -> ChosenModel:
    """Return the model that ``--model`` names."""

    def chosen(text: str) -> ChosenModel:
        try:
            return ChosenModel(text, script)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument(
        "--model",
        default="scripted",
        metavar="MODEL",
        type=chosen,
        help="scripted (the default: no key, no network), or PROVIDER:MODEL, such as openai:gpt-5-mini or ollama:qwen3",
    )
    model: ChosenModel = parser.parse_args().model
    return model


def run_example(main: Callable[[], None]) -> None:
    """Run an example; where its job fails, as without the provider's key, print why and exit with status 2."""
    failures: list[str] = []
    try:
        main()
    except* AgentflowError as failed:  # also of a task group
        failures += [str(one) for one in _leaves(failed)]
    if failures:
        print("\n".join(f"error: {text}" for text in failures), file=sys.stderr)
        raise SystemExit(2)


def _leaves(group: BaseExceptionGroup[AgentflowError]) -> list[AgentflowError]:
    """Return the errors of a group, and of the groups in it."""
    return [
        leaf for one in group.exceptions for leaf in (_leaves(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]
