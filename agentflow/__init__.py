"""agentflow: durable, exactly-once, keyed stream processing for AI agents."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agentflow.api.agent import Agent
from agentflow.api.budgets import Budget, Price, RateLimit
from agentflow.api.chat_events import (
    BudgetExhaustedEvent,
    ChatRequestEvent,
    ChatResponseEvent,
    ToolRequestEvent,
    ToolResponseEvent,
)
from agentflow.api.chat_history import KeepLast, Summarise, TokenBudget
from agentflow.api.chat_messages import ChatMessage, FilePart, ImagePart, MessageRole, TextPart, Usage
from agentflow.api.chat_models import (
    BaseChatModelConnection,
    BaseChatModelSetup,
    ErrorHandlingStrategy,
    StructuredOutputStrategy,
)
from agentflow.api.codecs import Codec
from agentflow.api.decorators import action
from agentflow.api.events import CancelEvent, Event, EventType, InputEvent, OutputEvent, TimerEvent
from agentflow.api.executions import (
    ExecutionEntityTypes,
    ExecutionProblemCategories,
    ExecutionReporters,
    LLMExecutionMetadataKeys,
    ToolExecutionMetadataKeys,
)
from agentflow.api.failure import OnError, Retry
from agentflow.api.memory import MemoryObject, MemoryRef, MemoryType
from agentflow.api.options import ConfigOption, Configuration
from agentflow.api.outputs import OutputRecord, idempotent
from agentflow.api.prompts import Prompt
from agentflow.api.resource_names import ResourceName
from agentflow.api.resources import (
    Resource,
    ResourceContext,
    ResourceDescriptor,
    ResourceType,
    chat_model_connection,
    chat_model_setup,
    mcp_server,
    prompt,
)
from agentflow.api.runner_context import RunnerContext
from agentflow.api.steps import Done, StepIntent, Verdict, reconcile
from agentflow.api.streams import ChunkKind, StreamChunk
from agentflow.api.tools import InjectedArg, Tool, ToolMetadata, ToolParameterSource, ToolType, tool
from agentflow.errors import (
    AgentflowError,
    BudgetExhausted,
    ConfigError,
    EngineClosed,
    EngineOverloaded,
    JobFailed,
    ModelError,
    NotConfigured,
    PlanError,
    RequestMismatch,
    RunFailed,
    UnknownRun,
    UnknownWait,
)

if TYPE_CHECKING:
    from agentflow.actions.agents.react_agent import ReActAgent
    from agentflow.connectors.arrow_sinks import ArrowSink, ParquetSink
    from agentflow.connectors.arrow_source import ArrowSource, ParquetSource
    from agentflow.connectors.collections import CollectionSink, CollectionSource
    from agentflow.connectors.csv_sink import CsvSink
    from agentflow.connectors.csv_source import CsvSource
    from agentflow.connectors.function_sink import FunctionSink
    from agentflow.connectors.function_source import FunctionSource
    from agentflow.connectors.jsonl import JsonlSource
    from agentflow.connectors.jsonl_sink import JsonlSink
    from agentflow.environment.engine import Engine, EngineStats
    from agentflow.environment.streams import AgentsExecutionEnvironment
    from agentflow.environment.yaml_agents import load_agents
    from agentflow.plan.plan import AgentPlan
    from agentflow.runtime.settings import (
        CheckpointSettings,
        EventLogSettings,
        JobSettings,
        MetricsSettings,
        ObjectStoreSettings,
        OtlpSettings,
        RedactionSettings,
        StateSettings,
        TracingSettings,
    )

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentPlan",
    "AgentflowError",
    "AgentsExecutionEnvironment",
    "ArrowSink",
    "ArrowSource",
    "BaseChatModelConnection",
    "BaseChatModelSetup",
    "Budget",
    "BudgetExhausted",
    "BudgetExhaustedEvent",
    "CancelEvent",
    "ChatMessage",
    "ChatRequestEvent",
    "ChatResponseEvent",
    "CheckpointSettings",
    "ChunkKind",
    "Codec",
    "CollectionSink",
    "CollectionSource",
    "ConfigError",
    "ConfigOption",
    "Configuration",
    "CsvSink",
    "CsvSource",
    "Done",
    "Engine",
    "EngineClosed",
    "EngineOverloaded",
    "EngineStats",
    "ErrorHandlingStrategy",
    "Event",
    "EventLogSettings",
    "EventType",
    "ExecutionEntityTypes",
    "ExecutionProblemCategories",
    "ExecutionReporters",
    "FilePart",
    "FunctionSink",
    "FunctionSource",
    "ImagePart",
    "InjectedArg",
    "InputEvent",
    "JobFailed",
    "JobSettings",
    "JsonlSink",
    "JsonlSource",
    "KeepLast",
    "LLMExecutionMetadataKeys",
    "MemoryObject",
    "MemoryRef",
    "MemoryType",
    "MessageRole",
    "MetricsSettings",
    "ModelError",
    "NotConfigured",
    "ObjectStoreSettings",
    "OnError",
    "OtlpSettings",
    "OutputEvent",
    "OutputRecord",
    "ParquetSink",
    "ParquetSource",
    "PlanError",
    "Price",
    "Prompt",
    "RateLimit",
    "ReActAgent",
    "RedactionSettings",
    "RequestMismatch",
    "Resource",
    "ResourceContext",
    "ResourceDescriptor",
    "ResourceName",
    "ResourceType",
    "Retry",
    "RunFailed",
    "RunnerContext",
    "StateSettings",
    "StepIntent",
    "StreamChunk",
    "StructuredOutputStrategy",
    "Summarise",
    "TextPart",
    "TimerEvent",
    "TokenBudget",
    "Tool",
    "ToolExecutionMetadataKeys",
    "ToolMetadata",
    "ToolParameterSource",
    "ToolRequestEvent",
    "ToolResponseEvent",
    "ToolType",
    "TracingSettings",
    "UnknownRun",
    "UnknownWait",
    "Usage",
    "Verdict",
    "action",
    "chat_model_connection",
    "chat_model_setup",
    "idempotent",
    "load_agents",
    "mcp_server",
    "prompt",
    "reconcile",
    "tool",
]

_LAZY = {  # what runs a job is imported when it is asked for: an agent's module needs none of it
    "AgentPlan": "agentflow.plan.plan",
    "AgentsExecutionEnvironment": "agentflow.environment.streams",
    "ArrowSink": "agentflow.connectors.arrow_sinks",
    "ArrowSource": "agentflow.connectors.arrow_source",
    "CheckpointSettings": "agentflow.runtime.settings",
    "CollectionSink": "agentflow.connectors.collections",
    "CollectionSource": "agentflow.connectors.collections",
    "CsvSink": "agentflow.connectors.csv_sink",
    "CsvSource": "agentflow.connectors.csv_source",
    "Engine": "agentflow.environment.engine",
    "EngineStats": "agentflow.environment.engine",
    "EventLogSettings": "agentflow.runtime.settings",
    "FunctionSink": "agentflow.connectors.function_sink",
    "FunctionSource": "agentflow.connectors.function_source",
    "JobSettings": "agentflow.runtime.settings",
    "JsonlSink": "agentflow.connectors.jsonl_sink",
    "JsonlSource": "agentflow.connectors.jsonl",
    "MetricsSettings": "agentflow.runtime.settings",
    "ObjectStoreSettings": "agentflow.runtime.settings",
    "OtlpSettings": "agentflow.runtime.settings",
    "ParquetSink": "agentflow.connectors.arrow_sinks",
    "ParquetSource": "agentflow.connectors.arrow_source",
    "ReActAgent": "agentflow.actions.agents.react_agent",
    "RedactionSettings": "agentflow.runtime.settings",
    "StateSettings": "agentflow.runtime.settings",
    "TracingSettings": "agentflow.runtime.settings",
    "load_agents": "agentflow.environment.yaml_agents",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any public name)
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    msg = f"module 'agentflow' has no attribute {name!r}"
    raise AttributeError(msg)
