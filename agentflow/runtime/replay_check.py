"""Would the unfinished runs of a state go on with this code? Their recorded steps are replayed, and nothing else happens.

Each unfinished task starts again, is answered from its records, and is left alone at the first step that is not recorded. What it did
is thrown away. So user code above that step runs once more, as it does at every recovery: it has to be steps, or harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from agentflow.api.codecs import Codec
from agentflow.api.encoding import encode_msgpack
from agentflow.core.delta import StoredRow, Table
from agentflow.core.effects import (
    DeadLetter,
    Effect,
    FailJob,
    RefuseStep,
    ReplayAction,
    ResolveStep,
    SkipTask,
    StartAction,
)
from agentflow.core.epoch import META_NAME, decode_meta
from agentflow.core.failures import FailurePolicy
from agentflow.core.inputs import Input
from agentflow.core.limits import OperatorLimits
from agentflow.core.operator import Operator
from agentflow.core.records import ErrorReport
from agentflow.errors import StateMismatch
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.action_runner import ActionRunner
from agentflow.runtime.blocking import BlockingThreads
from agentflow.runtime.codecs import input_decoder
from agentflow.runtime.services import OperatorServices
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.step_runner import StepRunner

_CANNOT_GO_ON = frozenset({"Divergence", "ConfigError"})
"""The latter of models and tools that cannot be built: what is recorded behind them cannot be compared."""
_LONG_AGO_MS = 0  # so that nothing is due
_NEVER_MS = 2**31


class ReadableState(Protocol):
    """What is read of keyed state."""

    def get(self, operator: int, key: bytes, path: str) -> bytes | None: ...  # noqa: D102
    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]: ...  # noqa: D102


class DivergingRun(msgspec.Struct, rename="kebab"):
    """An unfinished run that cannot go on with this code.

    Attributes:
        run: Its id.
        task: The task.
        message: Both sides: what is recorded, and what is called.
    """

    run: str
    task: str
    message: str


async def diverging_runs(
    plan: AgentPlan,
    settings: JobSettings,
    codec: Codec,
    state: ReadableState,
    rows: Mapping[Table, list[StoredRow]],
    journal: Sequence[bytes],
    checkpoint: int,
    *,
    index: int = 0,
    incarnation: str = "",
    patience_s: float = 5.0,
) -> list[DivergingRun]:
    """Return the unfinished runs of one agent that would diverge.

    Args:
        plan: The agent, with its present code.
        settings: The job's settings.
        codec: Of its inputs.
        state: Keyed state; it is only read.
        rows: Its rows, without memory.
        journal: Records behind the checkpoint.
        checkpoint: The last completed one.
        index: Place of the agent in its chain.
        incarnation: Of the job's state.
        patience_s: How long code may take that is not a step.
    """
    replay = _Replay(plan, settings, codec, state, index, incarnation)
    try:
        replay.operator.restore(dict(rows), _LONG_AGO_MS, journal, checkpoint)
    except StateMismatch as error:
        where = error.where or {}
        return [DivergingRun(str(where.get("run", "")), str(where.get("task", "")), error.what)]
    return await replay.run(patience_s)


def is_changed(plan: AgentPlan, rows: Mapping[Table, list[StoredRow]]) -> bool:
    """Whether the rows were written by another plan: other names, triggers or policies."""
    stored = next((row.value for row in rows.get(Table.META, ()) if row.name == META_NAME), None)
    return stored is not None and decode_meta(stored).plan_hash != plan.plan_hash


class _Replay:
    def __init__(
        self,
        plan: AgentPlan,
        settings: JobSettings,
        codec: Codec,
        state: ReadableState,
        index: int,
        incarnation: str,
    ) -> None:
        policy = FailurePolicy(settings.job, plan.name, has_dead_letters=True)
        self.operator = Operator(plan, policy, OperatorLimits(), index=index, decode_input=input_decoder(codec))
        services = OperatorServices(self.operator, settings, incarnation, state, encode_msgpack)  # type: ignore[arg-type]
        self._steps = services.steps = StepRunner(self._apply, lambda: None, incarnation, plan.errors, _NEVER_MS)
        self._threads = BlockingThreads(settings.blocking.threads_max, _NEVER_MS)
        self._runner = ActionRunner(services, codec, self._apply, self._failed, self._threads)
        self._found: dict[tuple[str, str], DivergingRun] = {}
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._is_due = False  # something was decided that is not carried out yet

    async def run(self, patience_s: float) -> list[DivergingRun]:
        """Let everything go on until nothing does any more, for as long as `patience_s` between two things."""
        operator = self.operator
        for key in list(operator._sleepers.by_key):  # noqa: SLF001 (one machine, seen from inside)
            operator._sleepers.open(key)  # noqa: SLF001
        operator._waiting.start_all(list(operator._runs))  # noqa: SLF001
        self._loop.call_soon(self._carry_out)
        await asyncio.sleep(0)
        while self._is_at_work and self._loop.time() - self._last_s < patience_s:  # noqa: ASYNC110 (user code)
            await asyncio.sleep(0.01)
        await self._runner.close()
        self._threads.close()
        return list(self._found.values())

    @property
    def _is_at_work(self) -> bool:
        return self._is_due or self._runner.is_busy

    def _apply(self, received: Input) -> None:
        self._last_s = self._loop.time()
        self.operator.apply(received, _LONG_AGO_MS)
        self._is_due = True
        self._loop.call_soon(self._carry_out)

    def _carry_out(self) -> None:
        self._is_due = False
        for effect in self.operator.take_effects():
            self._carry_out_one(effect)

    def _carry_out_one(self, effect: Effect) -> None:
        if isinstance(effect, StartAction):
            answer = self._runner.start(effect.task)
            if answer is not None:
                self._apply(answer)
        elif isinstance(effect, ReplayAction):
            self._apply(effect.ending)
        elif isinstance(effect, ResolveStep | RefuseStep):
            if isinstance(effect, RefuseStep):
                self._find(effect.task.run.id, effect.task.path, effect.message)
            self._steps.answer(effect)
        elif isinstance(effect, DeadLetter):
            self._judge(effect.record.run_id, effect.reason, effect.error)
        elif isinstance(effect, FailJob):
            self._judge(effect.reason.get("source-position", ""), effect.reason, effect.error)
        elif isinstance(effect, SkipTask):
            self._judge(effect.task.run.id, {"task": effect.task.path}, effect.error)

    def _judge(self, run: str, reason: Mapping[str, Any], error: ErrorReport) -> None:
        if error.type in _CANNOT_GO_ON:
            self._find(run, str(reason.get("task", "")), error.message)

    def _find(self, run: str, task: str, message: str) -> None:
        self._found.setdefault((run, task), DivergingRun(run, task, message))

    def _failed(self, error: BaseException) -> None:
        raise error
