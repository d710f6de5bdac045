"""What the contexts of one operator share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from agentflow.api.callables import InThread
from agentflow.api.chat_messages import ChatMessage
from agentflow.api.encoding import encode_msgpack
from agentflow.api.memory import MemoryLimits
from agentflow.api.metrics import MetricRegistry
from agentflow.api.runner_context import RunnerContext
from agentflow.core.operator import Operator
from agentflow.core.records import Record
from agentflow.core.runs import ActionTask, KeyState
from agentflow.runtime.logs import Fields, LazyLogger
from agentflow.runtime.ports import KeyedState
from agentflow.runtime.resources import AgentResources, Resources
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.step_runner import StepRunner
from agentflow.runtime.streams import NOWHERE, LiveStream, Nowhere, Streams

_decode_key = msgspec.msgpack.Decoder().decode


class OperatorServices:
    """See `agentflow.api.context_services.ContextServices`.

    Args:
        operator: The operator.
        settings: The job's settings.
        incarnation: Random id of the job's state; seeds `ctx.random`.
        state: Keyed state.
        encode_output: Encoder of outputs: for the sink, or for the next operator of the chain.
    """

    def __init__(
        self,
        operator: Operator,
        settings: JobSettings,
        incarnation: str,
        state: KeyedState,
        encode_output: Callable[[object], bytes],
    ) -> None:
        self.plan = plan = operator.plan
        self.job = settings.job
        self.agent = plan.name
        self.incarnation = incarnation
        self.config = plan.config
        ttl = settings.state
        self.memory_limits = MemoryLimits(ttl.value_max_bytes, ttl.ttl_ms, ttl.ttl_update == "on-read-and-write")
        self.sensory_limits = MemoryLimits(ttl.value_max_bytes)
        self.record_max = self.output_max = settings.record_max_bytes
        self.encode_event: Callable[[object], bytes] = encode_msgpack
        self.encode_output = encode_output
        self.has_tombstones = False
        self.subtask = 0
        self.shown_key: Callable[[Any], Any] = lambda key: key  # the one place where keys go into log lines
        self.trace_id: Callable[[Record], str | None] = lambda record: None  # noqa: ARG005 (runs are not traced)
        self._get, self._scan = state.get, state.scan
        self._operator = operator.index
        self.steps: StepRunner | None = None
        self.streams: Streams | None = None
        self.in_thread: InThread = asyncio.to_thread
        self.resources: AgentResources = Resources().of(plan)
        self.report: Callable[..., object] | None = None
        self.wants_reports: Callable[[ActionTask], bool] | None = None
        self.wants_content: Callable[[ActionTask], bool] | None = None
        self.metrics = MetricRegistry()
        self._grow = operator.keys.grow

    def fetch_memory(self, owner: KeyState, path: str) -> bytes | None:
        """Return a memory value that is not cached, and cache it; a first miss loads the whole key.

        A key's paths are few and small as a rule. Knowing all of them answers every later question about what does not
        exist, which is what the first write of each path has to ask.
        """
        if owner.is_loaded:
            return owner.memory.get(path)
        stored = self._get(self._operator, owner.key, path)
        memory = owner.memory
        if stored is not None:
            self._grow(owner, (stored,))
            return memory.setdefault(path, stored)
        found = self._scan(self._operator, owner.key, "")
        for below, value in found:
            memory.setdefault(below, value)
        self._grow(owner, [value for _, value in found])
        owner.is_loaded = True
        return memory.get(path)

    def chat(self, ctx: RunnerContext, model: str, messages: Any, **options: Any) -> Awaitable[ChatMessage]:  # noqa: ANN401
        """See `RunnerContext.chat`."""
        from agentflow.actions.chat_loop import chat  # agents without models do not pay for it

        return chat(ctx, model, messages, **options)

    def stream(self, task: ActionTask, name: str) -> LiveStream | Nowhere:
        """See `RunnerContext.stream`."""
        return NOWHERE if self.streams is None else self.streams.open(task, name)

    def logger(self, task: ActionTask) -> LazyLogger:
        """Return the logger of an attempt."""
        return LazyLogger("agentflow.agent", partial(self._log_fields, task, task.attempt))

    def _log_fields(self, task: ActionTask, attempt: int) -> Fields:
        """Return what every log line of an attempt says. The names are those of the engine's own lines."""
        run = task.run
        fields = {
            "job": self.job,
            "agent": self.agent,
            "subtask": self.subtask,
            "key": self.shown_key(_decode_key(run.state.key)),
            "run": run.id,
            "action": task.action.name,
            "attempt": attempt,
        }
        trace_id = self.trace_id(run.record)
        return fields if trace_id is None else {**fields, "trace_id": trace_id}
