"""The sequential run: one record after the other, each to its end, in plain dictionaries.

Independent of the engine: no bytes, no queues across runs, no time. What it says about outputs, memory, dead letters and timers
is what the engine has to come to, whatever crashed in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from agentflow.api.events import EventType
from agentflow.api.failure import OnError
from agentflow.core.records import Record
from agentflow.testing.paid_service import branches_price, price
from agentflow.testing.program import NOTED, PATHS, TIMER_AFTER_MS, WAITS, ActionSpec, Op, Program, account_of

Memory = dict[str, Any]
DeadEntry = tuple[str, str, str]
"""A dead letter as (run id, task path or "", error type)."""


class Arrival(msgspec.Struct, frozen=True):
    """An input of one operator: run id, key, number and event time of its record."""

    run: str
    key: object
    n: int
    timestamp_ms: int | None


class EventTimer(msgspec.Struct, frozen=True):
    """An event timer: name, encoded key, and how many inputs of the key have an event time up to its own."""

    name: str
    key: bytes
    inputs_before: int


class Expected(msgspec.Struct):
    """What a whole job has to come to.

    Attributes:
        outputs: Of the last operator, in input order; right per key.
        memory: (operator, encoded key) → path → value.
        dead: Dead letters in input order, per operator one after the other.
        event_timers: Timers that fire once.
        clock_timers: (name, encoded key) of timers that fire once or are still set at the end.
        troubled: Encoded keys of which an attempt fails: their runs may be parked and let watermarks pass.
        perhaps: Memory paths that may be there or not: accounts of tasks that a dead one beside them has stopped, or not yet.
    """

    outputs: list[dict[str, Any]]
    memory: dict[tuple[int, bytes], Memory]
    dead: list[DeadEntry]
    event_timers: list[EventTimer]
    clock_timers: list[tuple[str, bytes]]
    troubled: set[bytes]
    perhaps: set[str]


class _Did(msgspec.Struct):
    """What one successful attempt did."""

    writes: Memory
    sensory: Memory
    sent: list[tuple[str | None, Any]]
    timers: list[tuple[Op, str]]
    left: int = 0  # how many were sent before the last wait


class _Task(msgspec.Struct):
    spec: ActionSpec
    path: str
    attempt: int = 1
    did: _Did | None = None


class _Dead(Exception):
    def __init__(self, path: str, error: str) -> None:
        super().__init__(path)
        self.entry = (path, error)


_GONE = object()
_PARKING = (*WAITS, Op.PAY, Op.PAY_IN_BRANCHES)  # paying waits for the next call where one fails


class _Sequence:
    """One operator."""

    def __init__(self, program: Program, expected: Expected, operator: int) -> None:
        self._program = program
        self._expected = expected
        self._operator = operator
        self._event_timers: list[tuple[str, bytes, int]] = []  # (name, encoded key, due)
        self.outputs: list[tuple[str, dict[str, Any]]] = []  # (id of the output, value)

    def take_all(self, arrivals: Iterable[Arrival]) -> None:
        """Process inputs, then see which of them lie before which event timer."""
        times: dict[bytes, list[int]] = {}
        for arrival in arrivals:
            self._take(arrival)
            if arrival.timestamp_ms is not None:
                times.setdefault(self._encoded_key, []).append(arrival.timestamp_ms)
        for name, key, due_ms in self._event_timers:
            before = sum(timestamp_ms <= due_ms for timestamp_ms in times[key])
            self._expected.event_timers.append(EventTimer(name, key, before))

    def _take(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._encoded_key = msgspec.msgpack.encode(arrival.key)
        self._memory = self._expected.memory.setdefault((self._operator, self._encoded_key), {})
        self._sensory: Memory = {}
        self._queue: deque[_Task] = deque()
        if self._program.has_timers:
            self._memory[NOTED] = [*self._memory.get(NOTED, []), arrival.timestamp_ms]
        self._route(None, 0, EventType.InputEvent)
        try:
            while self._queue:
                task = self._queue.popleft()
                group = [task]
                while task.spec.is_parallel and self._queue and self._queue[0].spec.is_parallel:
                    group.append(self._queue.popleft())
                self._run_group(group)
        except _Dead as dead:
            self._expected.dead.append((arrival.run, *dead.entry))

    def _route(self, parent: _Task | None, index: int, event_type: str) -> None:
        above = f"{parent.path}/" if parent is not None else ""
        self._queue.extend(
            _Task(spec, f"{above}{index}:{spec.name}") for spec in self._program.actions if spec.trigger == event_type
        )

    def _run_group(self, group: list[_Task]) -> None:
        """Run tasks that start together; a group of one is a task alone."""
        dead_at: dict[int, _Dead] = {}
        for place, task in enumerate(group):
            try:
                self._attempt(task, is_perhaps_stopped=bool(dead_at))
            except _Dead as dead:
                dead_at[place] = dead
        written: dict[tuple[str, str], int] = {}
        for place, task in enumerate(group):
            if place in dead_at:
                raise dead_at[place]
            started_behind = 0
            while task.did is not None and any(
                behind >= started_behind and slot in _slots(task.did) for slot, behind in written.items()
            ):
                self._expected.troubled.add(self._encoded_key)
                if task.attempt == task.spec.attempts:
                    self._give_up(task, "MemoryConflict")
                else:
                    task.attempt += 1
                    started_behind = place
                    self._attempt(task)
            if task.did is not None:
                written.update(dict.fromkeys(_slots(task.did), place))
                self._apply(task, task.did)

    def _attempt(self, task: _Task, *, is_perhaps_stopped: bool = False) -> None:
        """Attempt until it succeeds or is given up: skipped (``did`` is None) or dead."""
        task_id = f"{self._arrival.run}/{task.path}"
        failures = task.spec.failures(self._program.seed, task_id)
        if task.spec.keeps(self._program.seed):
            last = max(task.attempt, min(failures + 1, task.spec.attempts))
            accounts = [account_of(task_id, attempt) for attempt in range(task.attempt, last + 1)]
            self._memory.update(dict.fromkeys(accounts, 1))
            if is_perhaps_stopped:
                self._expected.perhaps.update(accounts)
        if task.attempt <= failures:
            self._expected.troubled.add(self._encoded_key)
            if failures >= task.spec.attempts:
                self._emit_before_waits(task, self._perform(task.spec, task_id))
                self._give_up(task, "ValueError")
                return
            task.attempt = failures + 1
        task.did = self._perform(task.spec, task_id)

    def _emit_before_waits(self, task: _Task, did: _Did) -> None:
        """Let the outputs go that left before a wait of a task that fails for good."""
        for index, (event_type, value) in enumerate(did.sent[: did.left]):
            if event_type is None:
                self.outputs.append((f"{self._arrival.run}/{task.path}/{index}", value))

    def _give_up(self, task: _Task, error: str) -> None:
        task.did = None
        if task.spec.on_error is not OnError.SKIP:
            raise _Dead(task.path, error)

    def _perform(self, spec: ActionSpec, task_id: str) -> _Did:
        did = _Did({}, {}, [], [])
        for op, name in spec.ops:
            value = _value(did.writes, self._memory, name)
            if op in _PARKING:
                self._expected.troubled.add(self._encoded_key)  # while it is parked, watermarks pass
            if op is Op.COUNT:
                did.writes[name] = (value if isinstance(value, int) else 0) + 1
            elif op is Op.APPEND:
                did.writes[name] = [*(value if isinstance(value, list) else []), self._arrival.n][-4:]
            elif op is Op.DELETE:
                if value is not None:
                    did.writes[name] = _GONE
            elif op is Op.SENSORY:
                did.sensory[name] = (_value(did.sensory, self._sensory, name) or 0) + 1
            elif op is Op.EMIT:
                seen = [_value(did.writes, self._memory, path) for path in PATHS]
                sensory = [_value(did.sensory, self._sensory, path) for path in PATHS]
                output = {"k": self._arrival.key, "n": self._arrival.n, "by": task_id, "seen": seen, "sensory": sensory}
                did.sent.append((None, output | {"ts": self._arrival.timestamp_ms}))
            elif op is Op.SEND:
                did.sent.append((name, None))
            elif op in WAITS:
                did.left = len(did.sent)
            elif op is Op.LUCK:
                did.writes[name] = None  # nobody knows
            elif op is Op.PAY:
                did.writes[name] = price(self._arrival.n)
            elif op is Op.PAY_IN_BRANCHES:
                did.writes[name] = branches_price(self._arrival.n)
            else:
                did.timers.append((op, f"{op.value} {task_id}"))
        return did

    def _apply(self, task: _Task, did: _Did) -> None:
        for path, value in did.writes.items():
            if value is _GONE:
                self._memory.pop(path, None)
            else:
                self._memory[path] = value
        self._sensory.update(did.sensory)
        for index, (event_type, value) in enumerate(did.sent):
            if event_type is None:
                self.outputs.append((f"{self._arrival.run}/{task.path}/{index}", value))
            else:
                self._route(task, index, event_type)
        for op, name in dict.fromkeys(did.timers):
            if op is Op.EVENT_TIMER:
                assert self._arrival.timestamp_ms is not None
                self._event_timers.append((name, self._encoded_key, self._arrival.timestamp_ms + TIMER_AFTER_MS))
            else:
                self._expected.clock_timers.append((name, self._encoded_key))


def _value(writes: Memory, below: Memory, path: str) -> Any:  # noqa: ANN401 (memory values)
    if path in writes:
        return None if writes[path] is _GONE else writes[path]
    return below.get(path)


def _slots(did: _Did) -> list[tuple[str, str]]:
    """Return what a task wrote: short-term and sensory paths."""
    return [("short", path) for path in did.writes] + [("sensory", path) for path in did.sensory]


def run_sequentially(programs: Iterable[Program], records: Iterable[Record], *, has_event_time: bool) -> Expected:
    """Run a chain of agents over a script."""
    expected = Expected([], {}, [], [], [], set(), set())
    arrivals = []
    for record in records:
        try:
            value = msgspec.json.decode(record.value or b"null")
        except msgspec.DecodeError:
            expected.dead.append((record.run_id, "", "DecodeError"))
            continue
        if not isinstance(value.get("k"), str | int | float):
            expected.dead.append((record.run_id, "", "MissingKey"))
        else:
            arrivals.append(Arrival(record.run_id, value["k"], value["n"], value["ts"] if has_event_time else None))
    outputs: list[tuple[str, dict[str, Any]]] = []
    for operator, program in enumerate(programs):
        sequence = _Sequence(program, expected, operator)
        sequence.take_all(arrivals)
        outputs = sequence.outputs
        arrivals = [Arrival(output_id, value["k"], value["n"], value["ts"]) for output_id, value in outputs]
    expected.outputs = [value for _, value in outputs]
    return expected
