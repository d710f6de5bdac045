"""The steps of one attempt of a task: what they are called by, and who waits for them.

A step is named where it is called, not where it is awaited: by the scope it is called in and a counter of that scope. The
action's own coroutine is one scope. Every other asyncio task in which steps are called (`asyncio.gather`, `TaskGroup`,
`create_task`) is a branch with a scope of its own, named by its first step and counted among branches that begin the same, so
the order in which branches go on renumbers nothing.

    path = scope "." counter        scope = "" | scope "/" function ":" digest "#" count | scope "/branches#" group "[" place "]"

The last form is that of a branch of `ctx.gather` and `ctx.as_completed`, whose place is known.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import msgspec

from agentflow.api.runner_context import RunnerContext
from agentflow.core.effects import RefuseStep, ResolveStep, RunStep
from agentflow.core.runs import ActionTask

Answer = RunStep | ResolveStep | RefuseStep


class Scope(msgspec.Struct, eq=False):
    """Where steps are counted.

    Attributes:
        name: Its name, which step paths begin with.
        root: Scope of the attempt's own coroutine; None: this is it.
    """

    name: str
    root: Scope | None = None
    steps: int = 0
    groups: int = 0
    branches: dict[str, int] = {}

    def branch(self, first: str) -> Scope:
        """Return the scope of a new branch, by what it calls first."""
        count = self.branches.get(first, 0)
        self.branches[first] = count + 1
        return Scope(f"{self.name}/{first}#{count}", self.root or self)


_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("agentflow_scope", default=None)
"""The scope from which an asyncio task was started, as far as it had called a step by then. (It must not lead back to the task: the
context is the task's own, and only the cyclic collector would free the two.)"""


class TaskSteps:
    """The steps of one attempt of a task: scopes, and who waits for which step.

    Args:
        task: The task.
        ctx: The context of the attempt.
        root: The asyncio task of an async action; None in a thread.

    Attributes:
        waiting: Step → who waits for its answer, or has it and has not gone on yet.
        sleeping: Those of them that wait for time or a signal.
        calls: Functions that are being called, and steps that never end.
    """

    def __init__(self, task: ActionTask, ctx: RunnerContext, root: asyncio.Task[Any] | None) -> None:
        self.task = task
        self.ctx = ctx
        self.is_interrupted = False
        self.waiting: dict[str, asyncio.Future[Answer]] = {}
        self.sleeping: set[str] = set()
        self.calls = 0
        self._root = root
        self._root_scope = Scope("")
        self._scopes: dict[asyncio.Task[Any], Scope] = {}

    @property
    def is_in_thread(self) -> bool:
        """Whether the action runs in a thread: nobody can close that."""
        return self._root is None

    @property
    def only_sleeps(self) -> bool:
        """Whether all that the task does is to wait for time or signals."""
        return bool(self.sleeping) and not self.calls and len(self.sleeping) == len(self.waiting)

    @property
    def only_waits(self) -> bool:
        """Whether all that the task does is to wait for answers that have not come."""
        return bool(self.waiting) and not self.calls and not any(future.done() for future in self.waiting.values())

    def end(self) -> None:
        """Cancel the branches and the action itself, as the engine's own will."""
        self.is_interrupted = True
        self.ctx.close()
        for branch in (*self._scopes, self._root):
            if branch is not None:
                branch.cancel()

    def name(self, branch: asyncio.Task[Any], scope: str) -> None:
        """Name the scope of a branch."""
        self._scopes[branch] = Scope(scope, self._root_scope)

    def scope_of(self, current: asyncio.Task[Any] | None, function: str = "", arguments: bytes = b"") -> Scope:
        """Return the scope of an asyncio task; of a new branch, by what it calls first."""
        if current is self._root or current is None:
            return self._root_scope
        known = self._scopes.get(current)
        if known is None:
            outer, root = _scope.get(), self._root_scope
            if outer is None or (outer.root or outer) is not root:  # that of another attempt
                outer = root
            known = self._scopes[current] = outer.branch(
                f"{function}:{arguments.hex()[:8]}" if function else "branches"
            )
        return known

    def next_path(self, function: str, arguments: bytes, current: asyncio.Task[Any] | None) -> str:
        """Return the path of the step that is called now."""
        scope = self.scope_of(current, function, arguments)
        if not scope.steps:
            _scope.set(scope)
        path = f"{scope.name}.{scope.steps}"
        scope.steps += 1
        return path

    def settle_streams(self, step: str, *, is_final: bool) -> None:
        """Confirm what a step has said on streams, whose result is durable, or take it back."""
        if (streams := self.ctx._streams) is not None:  # noqa: SLF001 (the context's engine side)
            for stream in list(streams.values()):
                stream.settle(step, is_final=is_final)
