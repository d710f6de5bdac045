"""What `RunnerContext` needs of the engine: its task, and what a job gives to all contexts of one operator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from agentflow.api.chat_messages import ChatMessage
    from agentflow.api.memory import MemoryLimits
    from agentflow.api.metrics import MetricRegistry
    from agentflow.api.options import Configuration
    from agentflow.api.runner_context import RunnerContext


class TaskView(Protocol):
    """What the context sees of its task (the operator's `ActionTask`)."""

    run: Any
    action: Any
    attempt: int

    @property
    def id(self) -> str: ...  # noqa: D102


class ContextServices(Protocol):
    """What a job gives to all contexts of one operator."""

    job: str
    agent: str
    incarnation: str
    config: Configuration
    memory_limits: MemoryLimits
    sensory_limits: MemoryLimits
    record_max: int
    output_max: int
    encode_event: Callable[[object], bytes]
    encode_output: Callable[[object], bytes]
    has_tombstones: bool
    steps: Any
    resources: Any
    in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
    report: Callable[..., object] | None
    wants_reports: Callable[[Any], bool] | None
    wants_content: Callable[[Any], bool] | None
    metrics: MetricRegistry

    def chat(self, ctx: RunnerContext, model: str, messages: Any, **options: Any) -> Awaitable[ChatMessage]:  # noqa: ANN401
        """See `RunnerContext.chat`."""
        ...

    def stream(self, task: Any, name: str) -> Any:  # noqa: ANN401 (the operator's task; a `Stream` with the engine's side)
        """See `RunnerContext.stream`."""
        ...

    def logger(self, task: Any) -> Any:  # noqa: ANN401 (the operator's task; structlog's logger)
        """Return the logger of an attempt."""
        ...

    def fetch_memory(self, owner: Any, path: str) -> bytes | None:  # noqa: ANN401 (the operator's key state)
        """Return a memory value of a key that is not cached, and cache it."""
        ...
