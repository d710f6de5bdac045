"""agentflow: durable, exactly-once, keyed stream processing for AI agents."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agentflow.api.agent import Agent
from agentflow.api.codecs import Codec
from agentflow.api.decorators import action
from agentflow.api.events import CancelEvent, Event, EventType, InputEvent, OutputEvent, TimerEvent
from agentflow.api.failure import OnError, Retry
from agentflow.api.memory import MemoryObject, MemoryRef, MemoryType
from agentflow.api.options import ConfigOption, Configuration
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.api.runner_context import RunnerContext
from agentflow.api.steps import Done, StepIntent, Verdict, reconcile
from agentflow.errors import AgentflowError, ConfigError, JobFailed, NotConfigured, PlanError

if TYPE_CHECKING:
    from agentflow.connectors.collections import CollectionSink, CollectionSource
    from agentflow.connectors.jsonl import JsonlSource
    from agentflow.connectors.jsonl_sink import JsonlSink
    from agentflow.environment.streams import AgentsExecutionEnvironment
    from agentflow.plan.plan import AgentPlan
    from agentflow.runtime.settings import (
        CheckpointSettings,
        JobSettings,
        MetricsSettings,
        OtlpSettings,
        StateSettings,
        TracingSettings,
    )

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentPlan",
    "AgentflowError",
    "AgentsExecutionEnvironment",
    "CancelEvent",
    "CheckpointSettings",
    "Codec",
    "CollectionSink",
    "CollectionSource",
    "ConfigError",
    "ConfigOption",
    "Configuration",
    "Done",
    "Event",
    "EventType",
    "InputEvent",
    "JobFailed",
    "JobSettings",
    "JsonlSink",
    "JsonlSource",
    "MemoryObject",
    "MemoryRef",
    "MemoryType",
    "MetricsSettings",
    "NotConfigured",
    "OnError",
    "OtlpSettings",
    "OutputEvent",
    "PlanError",
    "ResourceDescriptor",
    "ResourceType",
    "Retry",
    "RunnerContext",
    "StateSettings",
    "StepIntent",
    "TimerEvent",
    "TracingSettings",
    "Verdict",
    "action",
    "reconcile",
]

_LAZY = {  # what runs a job is imported when it is asked for: an agent's module needs none of it
    "AgentPlan": "agentflow.plan.plan",
    "AgentsExecutionEnvironment": "agentflow.environment.streams",
    "CheckpointSettings": "agentflow.runtime.settings",
    "CollectionSink": "agentflow.connectors.collections",
    "CollectionSource": "agentflow.connectors.collections",
    "JobSettings": "agentflow.runtime.settings",
    "JsonlSink": "agentflow.connectors.jsonl_sink",
    "JsonlSource": "agentflow.connectors.jsonl",
    "MetricsSettings": "agentflow.runtime.settings",
    "OtlpSettings": "agentflow.runtime.settings",
    "StateSettings": "agentflow.runtime.settings",
    "TracingSettings": "agentflow.runtime.settings",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any public name)
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    msg = f"module 'agentflow' has no attribute {name!r}"
    raise AttributeError(msg)
