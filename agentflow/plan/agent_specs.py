"""What a YAML document of agents may say. The keys are the fields of these structs; the published JSON schema is made of them.

```yaml
chat_model_connections: [{name: openai, class: openai, api_key: "${env:OPENAI_API_KEY}"}]
chat_model_setups: [{name: small, class: openai, connection: openai, model: gpt-4o-mini}]
agents:
  - {name: support, type: react, chat_model: small, tools: [{function: "shop.tools:find_orders"}]}
```

Names and keys are those of Flink Agents, where it has them.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from agentflow.api.events import EventType
from agentflow.api.resource_names import ResourceName
from agentflow.api.resources import ResourceType

Name = Annotated[str, Meta(description="Its name, unique among its kind.", pattern=r"\S")]
Function = Annotated[str, Meta(description="module:name of a function.", pattern="^[^:]+:[^:]+$")]
Duration = Annotated[str, Meta(pattern=r"^\s*\d+(\.\d+)?\s*(ms|s|m|min|h|d)\s*$", examples=["30s"])]
Count = Annotated[int, Meta(ge=1)]

EVENT_ALIASES: Final = {
    "input": EventType.InputEvent,
    "timer": EventType.TimerEvent,
    "cancel": EventType.CancelEvent,
    "chat_request": EventType.ChatRequestEvent,
    "chat_response": EventType.ChatResponseEvent,
    "tool_request": EventType.ToolRequestEvent,
    "tool_response": EventType.ToolResponseEvent,
    "budget_exhausted": EventType.BudgetExhaustedEvent,
    "output": EventType.OutputEvent,
}
"""Names of the built-in events in ``trigger_conditions``."""

_PROVIDERS = list(dict.fromkeys(name for key, name in vars(ResourceName.ChatModel).items() if key.isupper()))


class _Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of known keys."""


class _OpenSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping of which the class decides the other keys."""


class RetrySpec(_Spec, frozen=True, kw_only=True):
    """Attempts after a failure, with growing waits between them."""

    attempts: Annotated[Count, Meta(description="Attempts in total; 1: no retry.")] = 3
    initial: Annotated[Duration, Meta(description="First wait.")] = "500ms"
    multiplier: Annotated[float, Meta(ge=1, description="Growth of the wait per attempt.")] = 2.0
    wait_max: Annotated[Duration, Meta(description="Longest wait.")] = "30s"
    jitter: Annotated[float, Meta(ge=0, le=1, description="Share of the wait that may be taken off.")] = 0.2


class ActionSpec(_Spec, frozen=True, kw_only=True):
    """A function that is called for events."""

    name: Annotated[Name | None, Meta(description="Its name; that of the function where there is none.")] = None
    function: Annotated[Function, Meta(description="module:name of a function (event, ctx), def or async def.")]
    trigger_conditions: Annotated[
        str | Annotated[list[str], Meta(min_length=1)],
        Meta(description="Event types, such as input or chat_response, and CEL conditions; any of them calls it."),
    ]
    config: Annotated[dict[str, Any], Meta(description="Its options: ctx.action_config.")] = {}
    type: Annotated[Literal["python"], Meta(description="Language of the function.")] = "python"
    blocking: Annotated[bool, Meta(description="Run a plain function in a thread.")] = False
    parallel: Annotated[bool, Meta(description="Tasks of parallel actions of a run start together.")] = False
    retry: Annotated[RetrySpec | None, Meta(description="What follows an attempt that fails.")] = None
    on_error: Annotated[
        Literal["dead-letter", "skip", "fail"] | None, Meta(description="What follows the last attempt.")
    ] = None
    timeout: Annotated[Duration | None, Meta(description="Longest time of one attempt.")] = None


class InjectedSpec(_Spec, frozen=True, kw_only=True):
    """An argument of a tool that the model neither sees nor sets."""

    source: Annotated[
        Literal["config", "sensory_memory", "short_term_memory"], Meta(description="Where it comes from.")
    ] = "sensory_memory"
    key: Annotated[str, Meta(description="Key of the configuration, or path in memory.", pattern=r"\S")]


class ToolSpec(_Spec, frozen=True, kw_only=True):
    """A function that a model may call; its type hints and its docstring say how."""

    name: Annotated[Name | None, Meta(description="Its name; that of the function where there is none.")] = None
    function: Annotated[Function, Meta(description="module:name of a function, def or async def.")]
    injected_args: Annotated[
        dict[str, InjectedSpec], Meta(description="Arguments that the model neither sees nor sets, by name.")
    ] = {}
    timeout: Annotated[Duration | None, Meta(description="Longest call.")] = None
    retry: Annotated[RetrySpec | None, Meta(description="What follows a call that fails.")] = None
    idempotent: Annotated[bool, Meta(description="A call that may have happened can be made again.")] = True
    reconciler: Annotated[
        Function | None, Meta(description="module:name of a function that says whether a call in doubt has happened.")
    ] = None
    requires_approval: Annotated[bool, Meta(description="A person has to approve each call: agentflow inbox.")] = False
    approval_timeout: Annotated[Duration | None, Meta(description="How long that may take.")] = None
    result_max: Annotated[Count | None, Meta(description="Most characters of a result that the model is given.")] = None


class MessageSpec(_Spec, frozen=True, kw_only=True):
    """A message of a prompt."""

    role: Annotated[Literal["system", "user", "assistant"], Meta(description="Who says it.")] = "user"
    content: Annotated[str, Meta(description="Text with {name} placeholders.")]


class InlinePromptSpec(_Spec, frozen=True, kw_only=True):
    """A prompt: one of text, messages and path."""

    text: Annotated[str | None, Meta(description="One text with {name} placeholders.")] = None
    messages: Annotated[list[MessageSpec] | None, Meta(description="Messages with {name} placeholders.")] = None
    path: Annotated[
        str | None,
        Meta(description="File with the text, or (.json, .yaml) with messages; relative to this document."),
    ] = None


class PromptSpec(InlinePromptSpec, frozen=True, kw_only=True):
    """A prompt: one of text, messages and path."""

    name: Name


class ResourceSpec(_OpenSpec, frozen=True, kw_only=True):
    """A resource by its class; all other keys are arguments of the class. ${env:NAME} and ${file:PATH} are kept, and resolved on first use."""

    name: Name
    clazz: Annotated[str, Meta(description="package.module.Class.")] = msgspec.field(name="class")


class ConnectionSpec(_OpenSpec, frozen=True, kw_only=True):
    """A way to a provider of models; all other keys are arguments of the class, such as api_key."""

    name: Name
    clazz: Annotated[str, Meta(description="package.module.Class, or a short name.", examples=_PROVIDERS)] = (
        msgspec.field(name="class")
    )


class InlineSetupSpec(_OpenSpec, frozen=True, kw_only=True):
    """A model as agents use it; all other keys are arguments of the class, such as temperature."""

    clazz: Annotated[
        str | None,
        Meta(
            description="package.module.Class, or a short name; that of the connection where there is none.",
            examples=_PROVIDERS,
        ),
    ] = msgspec.field(name="class", default=None)
    connection: Annotated[str, Meta(description="Name of its connection.")]
    model: Annotated[str, Meta(description="Name of the model, as its provider has it.")] = ""
    prompt: Annotated[str | None, Meta(description="Name of a prompt: messages before those of a request.")] = None
    tools: Annotated[list[str], Meta(description="Names of the tools that the model may call.")] = []
    fallback_models: Annotated[list[str], Meta(description="Names of the setups that are asked instead.")] = []


class SetupSpec(InlineSetupSpec, frozen=True, kw_only=True):
    """A model as agents use it; all other keys are arguments of the class, such as temperature."""

    name: Name


class McpServerSpec(_OpenSpec, frozen=True, kw_only=True):
    """An MCP server; all other keys are arguments of the class."""

    name: Name
    clazz: Annotated[str, Meta(description="package.module.Class.")] = msgspec.field(
        name="class", default=ResourceName.MCP_SERVER
    )


class AgentSpec(_Spec, frozen=True, kw_only=True):
    """An agent. Its own resources take the place of shared ones with the same name."""

    name: Name
    description: Annotated[str, Meta(description="What it does, for people.")] = ""
    type: Annotated[
        Literal["react"] | None,
        Meta(
            description="react: a model, its prompt and its tools, and no code. Without it: the agent is its actions."
        ),
    ] = None
    chat_model: Annotated[
        str | InlineSetupSpec | None, Meta(description="Of a react agent: name of a setup, or a setup.")
    ] = None
    prompt: Annotated[
        str | InlinePromptSpec | None, Meta(description="Of a react agent: name of a prompt, or a prompt.")
    ] = None
    output_schema: Annotated[
        dict[str, Any] | None, Meta(description="Of a react agent: JSON schema of its outputs.")
    ] = None
    max_turns: Annotated[Count | None, Meta(description="Of a react agent: most calls of the model for one input.")] = (
        None
    )
    actions: Annotated[list[str | ActionSpec], Meta(description="Actions, or names of shared ones.")] = []
    prompts: Annotated[list[str | PromptSpec], Meta(description="Prompts, or names of shared ones.")] = []
    tools: Annotated[
        list[str | ToolSpec],
        Meta(description="Tools, or names of shared ones; the model of a react agent may call these."),
    ] = []
    skills: Annotated[list[str | ResourceSpec], Meta(description="Skills.")] = []
    chat_model_connections: Annotated[list[str | ConnectionSpec], Meta(description="Connections.")] = []
    chat_model_setups: Annotated[list[str | SetupSpec], Meta(description="Models.")] = []
    embedding_model_connections: Annotated[list[str | ResourceSpec], Meta(description="Connections.")] = []
    embedding_model_setups: Annotated[list[str | ResourceSpec], Meta(description="Embedding models.")] = []
    vector_stores: Annotated[list[str | ResourceSpec], Meta(description="Vector stores.")] = []
    mcp_servers: Annotated[list[str | McpServerSpec], Meta(description="MCP servers.")] = []


class DocumentSpec(_Spec, frozen=True, kw_only=True):
    """Agents, and what they share."""

    agents: Annotated[list[AgentSpec], Meta(description="Agents, by name.")] = []
    actions: Annotated[list[ActionSpec], Meta(description="Actions for the agents that name them.")] = []
    prompts: Annotated[list[PromptSpec], Meta(description="Prompts for all agents.")] = []
    tools: Annotated[list[ToolSpec], Meta(description="Tools for all agents.")] = []
    skills: Annotated[list[ResourceSpec], Meta(description="Skills for all agents.")] = []
    chat_model_connections: Annotated[list[ConnectionSpec], Meta(description="Connections for all agents.")] = []
    chat_model_setups: Annotated[list[SetupSpec], Meta(description="Models for all agents.")] = []
    embedding_model_connections: Annotated[list[ResourceSpec], Meta(description="Connections for all agents.")] = []
    embedding_model_setups: Annotated[list[ResourceSpec], Meta(description="Embedding models for all agents.")] = []
    vector_stores: Annotated[list[ResourceSpec], Meta(description="Vector stores for all agents.")] = []
    mcp_servers: Annotated[list[McpServerSpec], Meta(description="MCP servers for all agents.")] = []


class Section(msgspec.Struct, frozen=True):
    """A list of named entries.

    Attributes:
        spec: What an entry says.
        noun: What one is called in messages.
        type: Kind of resource; None: actions, which are none.
    """

    spec: type[msgspec.Struct]
    noun: str
    type: ResourceType | None = None


SECTIONS: Final = {
    "actions": Section(ActionSpec, "action"),
    "prompts": Section(PromptSpec, "prompt", ResourceType.PROMPT),
    "tools": Section(ToolSpec, "tool", ResourceType.TOOL),
    "skills": Section(ResourceSpec, "skills", ResourceType.SKILLS),
    "chat_model_connections": Section(ConnectionSpec, "connection", ResourceType.CHAT_MODEL_CONNECTION),
    "chat_model_setups": Section(SetupSpec, "chat model", ResourceType.CHAT_MODEL),
    "embedding_model_connections": Section(ResourceSpec, "connection", ResourceType.EMBEDDING_MODEL_CONNECTION),
    "embedding_model_setups": Section(ResourceSpec, "embedding model", ResourceType.EMBEDDING_MODEL),
    "vector_stores": Section(ResourceSpec, "vector store", ResourceType.VECTOR_STORE),
    "mcp_servers": Section(McpServerSpec, "MCP server", ResourceType.MCP_SERVER),
}
"""The lists of a document, and of an agent."""

DOCUMENT_KEYS: Final = ("agents", *SECTIONS)
CLASS_KEYS: Final = ("class", "clazz", "type")
"""All of them name the class of a resource."""


@functools.cache
def document_schema() -> dict[str, Any]:
    """Return the JSON schemas of a document's keys as ``properties``, and what they refer to as ``$defs``."""
    (_, definitions) = msgspec.json.schema_components([DocumentSpec], ref_template="#/$defs/{name}")
    document = definitions.pop("DocumentSpec")
    for definition in definitions.values():
        properties = definition["properties"]
        if "class" in properties:
            for other in CLASS_KEYS[1:]:
                properties[other] = {**properties["class"], "description": "The same as class."}
            definition["required"] = [name for name in definition.get("required", ()) if name != "class"]
    return {"properties": document["properties"], "$defs": definitions}
