"""`OperatorHarness`: one agent in virtual time, driven record by record, without sources, sinks or files.

It is the real operator and the real action runner; only the loop's time is virtual, so waits, retries and timers take none.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Self

import msgspec

from agentflow.api.agent import Agent
from agentflow.api.codecs import JSON
from agentflow.api.durations import duration_ms
from agentflow.api.encoding import encode_json
from agentflow.api.memory_codec import decode_value, is_object
from agentflow.core.delta import RESTORED_TABLES, StoredRow, Table
from agentflow.core.effects import (
    CancelAction,
    DeadLetter,
    Effect,
    EmitRecord,
    FailJob,
    ForwardWatermark,
    StartAction,
    TakeSnapshot,
)
from agentflow.core.failures import FailurePolicy
from agentflow.core.inputs import (
    BarrierReceived,
    CheckpointCompleted,
    Input,
    RecordReceived,
    TimeAdvanced,
    WatermarkReceived,
)
from agentflow.core.limits import OperatorLimits
from agentflow.core.operator import Operator
from agentflow.core.records import Record
from agentflow.errors import JobFailed
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.action_runner import ActionRunner
from agentflow.runtime.blocking import BlockingThreads, Call
from agentflow.runtime.codecs import KeyBy, KeyReader, encode_key, input_decoder
from agentflow.runtime.resources import Resources
from agentflow.runtime.services import OperatorServices
from agentflow.runtime.settings import JobSettings
from agentflow.state.memory import MemoryKeyedState, MemoryStorage
from agentflow.testing.virtual_time import VirtualClock, VirtualTimeLoop

_SOURCE = "harness"


class _InlineThreads(BlockingThreads):
    """Runs blocking actions at once: a thread would live in real time."""

    def submit(self, call: Call) -> None:
        call()


class OperatorHarness:
    """Drive an agent in a test.

    Every method returns when nothing more happens without time going on: actions that wait are still in flight then.

        >>> from agentflow import Agent, EventType, OutputEvent
        >>> from agentflow.testing import OperatorHarness
        >>> def count(event, ctx):
        ...     seen = ctx.short_term_memory.update("seen", lambda seen: (seen or 0) + 1)
        ...     ctx.send_event(OutputEvent([ctx.key, seen]))
        >>> agent = Agent("Counter").add_action("count", [EventType.InputEvent], count)
        >>> with OperatorHarness(agent, key_by="user") as harness:
        ...     harness.process_record({"user": "ann"})
        ...     harness.process_record({"user": "ann"})
        ...     harness.outputs, harness.memory("ann")
        ([['ann', 1], ['ann', 2]], {'seen': 2})

    Args:
        agent: An agent, or its plan.
        key_by: Field or function that gives the key.
        settings: Settings of the job; what concerns sources, sinks and checkpoints has no meaning here.
        has_dead_letters: Whether there is a dead-letter sink.

    Attributes:
        effects: Every effect of the operator so far, in order.
        outputs: Decoded outputs so far.
        dead_letters: Dead letters so far, as the JSON documents that a sink would get.
        watermarks: Watermarks that left the operator, epoch milliseconds.
    """

    def __init__(
        self,
        agent: Agent | AgentPlan,
        *,
        key_by: KeyBy,
        settings: JobSettings | None = None,
        has_dead_letters: bool = True,
    ) -> None:
        self.effects: list[Effect] = []
        self.outputs: list[Any] = []
        self.dead_letters: list[dict[str, Any]] = []
        self.watermarks: list[int] = []
        self._plan = agent if isinstance(agent, AgentPlan) else AgentPlan.from_agent(agent)
        self._settings = settings or JobSettings()
        self._has_dead_letters = has_dead_letters
        self._keys = KeyReader(key_by, JSON)
        self._loop = VirtualTimeLoop()
        self._clock = VirtualClock(self._loop)
        self._storage = MemoryStorage()
        self._offset = 0
        self._inputs: list[Input] = []
        self._failure: BaseException | None = None
        self._start()

    def _start(self) -> None:
        settings, plan = self._settings, self._plan
        self._state = MemoryKeyedState(self._storage)
        limits = OperatorLimits(settings.run.in_flight_max, settings.key.pending_max, tasks_max=settings.run.tasks_max)
        policy = FailurePolicy(settings.job, plan.name, self._has_dead_letters)
        self._operator = Operator(plan, policy, limits, decode_input=input_decoder(JSON))
        self._runner = self._loop.run_until_complete(self._new_runner())
        rows: dict[Table, list[StoredRow]] = {table: list(self._state.rows(table)) for table in RESTORED_TABLES}
        self._operator.restore(rows, self._clock.now_ms())
        self._settle()

    async def _new_runner(self) -> ActionRunner:
        services = OperatorServices(self._operator, self._settings, "harness", self._state, encode_json)
        self._resources = Resources()
        services.resources = self._resources.of(self._plan)
        threads = _InlineThreads(1, self._settings.blocking.leaked_max)
        return ActionRunner(services, JSON, self._received, self._failed, threads)

    # -- what happens
    def process_record(self, value: object, *, timestamp_ms: int | None = None) -> None:
        """Give the operator one record.

        Args:
            value: The record's value; anything that can be encoded as JSON.
            timestamp_ms: Its event time.

        Raises:
            MissingKey: It has no key.
            JobFailed: The failure policy says `fail`.
        """
        record = Record(_SOURCE, self._offset, self._offset + 1, encode_json(value), None, timestamp_ms)
        received = RecordReceived(record, self._keys.read(record))
        self._offset += 1
        self._received(received)
        self._settle()

    def process_watermark(self, watermark_ms: int) -> None:
        """Say that no record with an earlier or equal event time follows."""
        self._received(WatermarkReceived(watermark_ms))
        self._settle()

    def advance_time(self, duration: timedelta | str) -> None:
        """Let processing time pass: waits end, retries and timers become due, in the order of their times."""
        end_ms = self.now_ms + duration_ms(duration)
        while self.now_ms < end_ms:
            due_ms = self._operator.next_due_ms
            until_ms = end_ms if due_ms is None else min(end_ms, max(due_ms, self.now_ms))
            # An action that ends on the way may set an earlier timer, so the loop stops at each of its own deadlines too.
            self._loop.run_to_next_deadline((until_ms - self.now_ms) / 1000)
            self._settle()

    def checkpoint(self) -> None:
        """Take a checkpoint and complete it: what `restart` goes back to."""
        number = self._storage.checkpoint + 1
        self._received(BarrierReceived(number, {_SOURCE: self._offset}))
        self._settle()
        snapshot = next(effect for effect in reversed(self.effects) if isinstance(effect, TakeSnapshot))

        async def complete() -> None:
            await self._state.prepare(number, snapshot.slices, {})
            await self._state.complete()

        self._loop.run_until_complete(complete())
        self._received(CheckpointCompleted(number))
        self._settle()

    def restart(self) -> int:
        """Lose the process and recover from the last checkpoint; return how many records it covers: give the rest again."""
        self._end()
        self._inputs.clear()
        self._start()
        return self._offset_restored()

    # -- what is to be seen
    @property
    def now_ms(self) -> int:
        """Processing time in epoch milliseconds."""
        return self._clock.now_ms()

    @property
    def runs_unfinished(self) -> int:
        """Runs that wait for an action, a retry, or their key."""
        return self._operator.runs_unfinished

    def memory(self, key: object) -> dict[str, Any]:
        """Return the short-term memory of a key as path → value; marks of empty objects are left out."""
        encoded = encode_key(key)
        rows: dict[str, bytes | None] = dict(self._state.scan(0, encoded, ""))
        rows.update(
            (name, value)
            for table, _, owner, name, value in self._operator.snapshot()
            if table is Table.MEMORY and owner == encoded
        )
        return {
            path: decode_value(value)
            for path, value in sorted(rows.items())
            if value is not None and not is_object(value)
        }

    # -- life
    def close(self) -> None:
        """Cancel what is in flight. Idempotent."""
        if not self._loop.is_closed():
            self._end()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> None:
        self._loop.run_until_complete(self._runner.close())
        self._loop.run_until_complete(self._resources.close())
        self._state.close()

    def _offset_restored(self) -> int:
        positions: Mapping[str, int] = next(
            (
                msgspec.msgpack.decode(row.value, type=dict[str, int])
                for row in self._state.rows(Table.META)
                if row.name == "positions"
            ),
            {},
        )
        self._offset = positions.get(_SOURCE, 0)
        return self._offset

    def _received(self, received: Input) -> None:
        self._inputs.append(received)

    def _failed(self, error: BaseException) -> None:
        self._failure = error

    def _settle(self) -> None:
        """Apply inputs and carry out effects until nothing more happens at this time."""
        while True:
            due_ms = self._operator.next_due_ms
            if due_ms is not None and due_ms <= self.now_ms:
                self._inputs.append(TimeAdvanced())
            if not self._inputs and not self._operator.effects:
                break
            self._loop.call_soon(self._turn)
            self._loop.run_until_idle()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure

    def _turn(self) -> None:
        try:
            inputs, self._inputs = self._inputs, []
            for received in inputs:
                self._operator.apply(received, self.now_ms)
            for effect in self._operator.take_effects():
                self.effects.append(effect)
                self._carry_out(effect)
        except Exception as error:  # noqa: BLE001 (handed to the caller of the harness)
            self._failed(error)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, StartAction):
            answer = self._runner.start(effect.task)
            if answer is not None:
                self._received(answer)
        elif isinstance(effect, CancelAction):
            if (stopped := self._runner.cancel(effect.task)) is not None:
                self._received(stopped)
        elif isinstance(effect, EmitRecord):
            self.outputs.append(msgspec.json.decode(effect.value or b"null"))
        elif isinstance(effect, DeadLetter):
            self.dead_letters.append(msgspec.json.decode(effect.value))
        elif isinstance(effect, ForwardWatermark):
            self.watermarks.append(effect.watermark_ms)
        elif isinstance(effect, FailJob):
            raise JobFailed(str(effect.error), where=dict(effect.reason))
