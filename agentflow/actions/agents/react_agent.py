"""`ReActAgent`: a model that thinks, calls tools, and answers: an agent without code of one's own.

agent = ReActAgent(
    chat_model=ResourceDescriptor("openai", connection="openai", model="gpt-5-mini"),
    prompt=Prompt.from_text("You answer questions about orders. The question: {input}"),
    output_schema=Answer,
    tools=[find_orders],
)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from agentflow.actions.built_in import CHAT_MODEL_ACTION, take_turn
from agentflow.actions.server_offers import ServerOffers
from agentflow.api.agent import Agent
from agentflow.api.chat_events import ChatRequestEvent, ChatResponseEvent, check_request
from agentflow.api.chat_messages import ChatMessage, MessageRole
from agentflow.api.encoding import plain_of
from agentflow.api.events import Event, EventType, OutputEvent
from agentflow.api.output_schemas import schema_of
from agentflow.api.prompts import Prompt
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.api.runner_context import RunnerContext
from agentflow.api.tools import Tool, ToolMetadata, ToolType
from agentflow.errors import (
    ModelUnavailable,
    NotConfigured,
    RecordError,
    StepFailed,
    ToolArgumentsInvalid,
    ToolFailed,
    ToolServerUnavailable,
)

_PLAIN: Final = (bool, int, float, str)


class ReActAgent(Agent):
    """Asks its model about each input, lets it call tools until it answers, and sends the answer out.

    An input that is a text or a number is the prompt's ``{input}``; the fields of an object are its placeholders by their names. The
    output is the answer by ``output_schema``, or its text.

    Args:
        chat_model: The model: descriptor of its setup, a setup, or the name of one that the environment has.
        prompt: What the model is told with each input: a prompt, or the name of one; None: the input itself.
        output_schema: What the answer has to be: a type or a JSON schema; None: a text.
        tools: What the model may call beside the tools of its setup: functions, tools, agents (`as_tool`), or names.
        max_turns: Most calls of the model for one input; None: as the setup says.
        name: Name of the agent; None: ``ReActAgent``.
    """

    def __init__(
        self,
        *,
        chat_model: ResourceDescriptor | Any,  # noqa: ANN401 (a setup, or a name)
        prompt: Prompt | str | None = None,
        output_schema: Any = None,  # noqa: ANN401 (a type or a schema)
        tools: Sequence[Any] = (),
        max_turns: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        check_request(tools, max_turns)
        self.prompt = prompt
        self.max_turns = max_turns
        self.output_schema = None if output_schema is None else schema_of(output_schema)
        # What is no schema may refuse more than its schema does.
        self.output_type = None if isinstance(output_schema, Mapping) else output_schema
        self.chat_model: str = chat_model if isinstance(chat_model, str) else f"{self.name}.chat_model"
        if not isinstance(chat_model, str):
            self.add_resource(self.chat_model, ResourceType.CHAT_MODEL, chat_model)
        self.tools = [self._tool_name(tool) for tool in tools]
        self.add_action("start_action", EventType.InputEvent, self._start)
        self.add_action("stop_action", EventType.ChatResponseEvent, self._stop)
        if self.output_type is not None:
            self.add_action(
                "chat_model_action",
                CHAT_MODEL_ACTION.trigger_conditions,
                self._ask,
                parallel=CHAT_MODEL_ACTION.parallel,
                retry=CHAT_MODEL_ACTION.retry,
            )

    def as_tool(self, name: str, description: str) -> AgentTool:
        """Return this agent as a tool for another one's model: its conversation is part of the other one's run, each call a step.

        Args:
            name: Name of the tool.
            description: What the other model is told of it.
        """
        metadata = ToolMetadata(
            name,
            description,
            {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
        )
        return AgentTool(metadata=metadata, agent=self)

    async def messages_for(self, value: Any, ctx: RunnerContext) -> list[ChatMessage]:  # noqa: ANN401 (an input)
        """Return what the model is asked about an input.

        Durability: a prompt of an MCP server is a step, so that a replay asks the same, whatever the server has by then.

        Raises:
            RecordError: The input is an object, and there is no prompt that says what to make of it.
        """
        arguments = _prompt_args(value)
        if self.prompt is None:
            if not isinstance(value, _PLAIN):
                raise RecordError(
                    f"the input of agent '{self.name}' is a {type(value).__name__}, and the agent has no prompt",
                    expected="a text or a number, or a prompt with placeholders for the fields of the input",
                    fix="ReActAgent(prompt=Prompt.from_text('… {field} …'))",
                )
            return [ChatMessage(MessageRole.USER, str(value))]
        prompt = self.prompt
        if isinstance(prompt, str):
            resources = ctx.resources
            if prompt not in resources.names(ResourceType.PROMPT) and resources.names(ResourceType.MCP_SERVER):
                step = ctx.durable_execute_async(_Served(ctx).messages, prompt, arguments, name=f"prompt:{prompt}")
                served: list[ChatMessage] = await step
                return served
            prompt = ctx.get_resource(prompt, ResourceType.PROMPT)
        assert isinstance(prompt, Prompt), "a resource of this type"
        return prompt.messages_of(MessageRole.USER, arguments)

    async def _start(self, event: Event, ctx: RunnerContext) -> None:
        messages = await self.messages_for(event.attributes["input"], ctx)
        ctx.send_event(
            ChatRequestEvent(
                self.chat_model,
                messages,
                prompt_args=_prompt_args(event.attributes["input"]),
                output_schema=self.output_schema,
                tools=self.tools,
                max_turns=self.max_turns,
            )
        )

    async def _ask(self, event: Event, ctx: RunnerContext) -> None:
        """In the place of the built-in action, which knows the schema only."""
        await take_turn(event, ctx, self.output_type)

    def _stop(self, event: Event, ctx: RunnerContext) -> None:
        answered = ChatResponseEvent.from_event(event)
        if answered.error is not None:
            ctx.send_event(OutputEvent({"error": answered.error}))
            return
        output = answered.output(self.output_type)  # a type may have fewer fields than what fits its schema
        ctx.send_event(OutputEvent(answered.response.content if output is None else output))

    def _tool_name(self, tool: Any) -> str:  # noqa: ANN401 (a name, a function, a tool)
        """Return the name of a tool; what is not a name becomes a resource of the agent."""
        if isinstance(tool, str):
            return tool
        made = tool if isinstance(tool, Tool) else Tool.of(tool)
        self.add_resource(made.metadata.name, ResourceType.TOOL, made)
        return made.metadata.name


class AgentTool(Tool):
    """An agent as a tool: its model answers, with its own prompt and tools.

    Attributes:
        agent: The agent.
    """

    agent: ReActAgent

    @classmethod
    def tool_type(cls) -> ToolType:
        """Return where it comes from."""
        return ToolType.AGENT

    @property
    def resources(self) -> Sequence[tuple[str, ResourceType, Any]]:
        """What the agent needs where it is a tool."""
        return self.agent.resources

    async def run_in(self, ctx: RunnerContext, arguments: dict[str, Any]) -> str:
        """Let the agent answer, as part of the run of ``ctx``.

        Raises:
            ToolArgumentsInvalid: What the other model says is no text.
            ModelUnavailable: The MCP server that has its prompt does not answer, or says that it failed.
        """
        agent, value = self.agent, arguments.get("input")
        if not isinstance(value, _PLAIN):
            raise ToolArgumentsInvalid(self.metadata.name, "'input' has to be a text")
        try:
            messages = await agent.messages_for(value, ctx)
        except (ToolServerUnavailable, ToolFailed, StepFailed) as error:  # the last one: one of the others, recorded
            said = error.original_text if isinstance(error, StepFailed) else error.what
            raise ModelUnavailable(f"agent '{agent.name}' has asked nothing: {said}") from None
        answer = await ctx.chat(
            agent.chat_model,
            messages,
            prompt_args=_prompt_args(value),
            output=agent.output_type or agent.output_schema,
            tools=agent.tools,
            max_turns=agent.max_turns,
        )
        return (
            answer.content if answer.output is None else msgspec.json.encode(answer.output, enc_hook=plain_of).decode()
        )

    def model_dump_json(self) -> str:
        """Return what the other model is told of it, for a stored plan."""
        return msgspec.json.encode(self.metadata, order="sorted").decode()


class _Served:
    """Asks MCP servers for prompts, inside of a durable step."""

    def __init__(self, ctx: RunnerContext) -> None:
        self._ctx = ctx

    async def messages(self, prompt: str, arguments: dict[str, str]) -> list[ChatMessage]:
        """Return the messages of a prompt, by its name."""
        served = await ServerOffers(self._ctx.resources).prompt(prompt, arguments)
        if served is None:
            raise NotConfigured(
                f"there is no prompt '{prompt}'",
                expected=f"one of the agent, or of {', '.join(self._ctx.resources.names(ResourceType.MCP_SERVER))}",
            )
        return served[0]


def _prompt_args(value: Any) -> dict[str, Any]:  # noqa: ANN401 (an input)
    """Return the placeholders' values: the fields of an object as texts, anything else as ``input``."""
    if isinstance(value, Mapping):
        return {str(name): _text(field) for name, field in value.items()}
    return {"input": _text(value)}


def _text(value: Any) -> str:  # noqa: ANN401 (an input's field)
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
