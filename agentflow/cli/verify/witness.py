"""What happens to the records of a rehearsal, seen from inside: keys, actions, steps, waits, outputs, dead letters."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agentflow.core.effects import DeadLetter, EmitRecord, SkipTask
from agentflow.core.inputs import ActionFailed
from agentflow.core.records import ORIGIN_HEADER, Record
from agentflow.runtime.observation import Turn
from agentflow.runtime.ports import Guarantee, Sink, Staged

_MS = 1_000_000


class AttemptSeen(msgspec.Struct, frozen=True):
    """An attempt of an action.

    Attributes:
        record: The record that its run began with.
        action: Its name.
        task: Path of the task.
        attempt: From 1.
        error: Why it failed; None: it did not.
        traceback: The user's part of the traceback.
        milliseconds: How long it took.
        steps: Durable steps that it called, in order.
    """

    record: str
    action: str
    task: str
    attempt: int
    error: str | None
    traceback: str
    milliseconds: float
    steps: list[StepLine]


class StepLine(msgspec.Struct, frozen=True):
    """A call of a durable step."""

    function: str
    call: int
    error: str | None
    milliseconds: float


class DeadLetterSeen(msgspec.Struct, frozen=True):
    """A record whose run failed for good."""

    record: str
    action: str | None
    error: str
    attempts: int
    traceback: str


class WaitSeen(msgspec.Struct, frozen=True):
    """A task that waits.

    Attributes:
        record: The record that its run began with.
        action: The action.
        what: For what: a time, or a signal.
        until_ms: When it goes on by itself, epoch milliseconds; None: never.
    """

    record: str
    action: str
    what: str
    until_ms: int | None


class Witness:
    """An `Observer` of the one agent, and who its sinks tell.

    Attributes:
        keys: Record → its key, decoded; of those that were admitted.
        attempts: In the order of their ends.
        dead: Records whose run failed for good.
        skipped: Tasks that were dropped by their policy, as text.
        outputs: Encoded values in order; of an embedded job.
        running: Task → its action; of those that began, and have not ended.
        waits: Task → what it waits for now.
        began_ns: When the first action began; 0: none did.
        answered_ns: When the last action ended.
        published_ns: When outputs became visible; 0: none did.
    """

    def __init__(self) -> None:
        self.keys: dict[str, object] = {}
        self.attempts: list[AttemptSeen] = []
        self.dead: list[DeadLetterSeen] = []
        self.skipped: list[str] = []
        self.outputs: list[bytes | None] = []
        self.running: dict[str, str] = {}
        self.waits: dict[str, WaitSeen] = {}
        self._steps: dict[str, list[StepLine]] = {}
        self.began_ns = self.answered_ns = self.published_ns = 0

    @property
    def described(self) -> str:
        """The actions and how often they were tried, for people."""
        tasks, attempts = len({(one.record, one.task) for one in self.attempts}), len(self.attempts)
        return f"{tasks} action{'s' if tasks != 1 else ''}, {attempts} attempt{'s' if attempts != 1 else ''}"

    @property
    def arrived(self) -> int:
        """How many records have become a run, or could not."""
        return len(self.keys) + sum(1 for letter in self.dead if letter.record not in self.keys)

    def waits_beyond(self, deadline_ms: int) -> int:
        """Return how many runs wait for something that does not come before ``deadline_ms`` by itself."""
        late = {wait.record for wait in self.waits.values() if wait.until_ms is None or wait.until_ms > deadline_ms}
        return len(late)

    def late(self, in_flight: int, timeout_ms: int) -> str:
        """Say what has not ended in time."""
        names = dict.fromkeys(name for task, name in self.running.items() if task not in self.waits)
        actions = ", ".join(f"'{name}'" for name in names)
        who = (
            f"action{'s' if len(names) > 1 else ''} {actions}"
            if names
            else f"{in_flight} run{'s' if in_flight != 1 else ''}"
        )
        return f"{who} did not end within {timeout_ms / 1000:g} s"

    def observe(self, turn: Turn, now_ms: int) -> None:
        """See `Observer`."""
        for received in turn.records:
            self.keys[_label(received.record)] = msgspec.msgpack.decode(received.key)
        self.running |= {task.id: task.action.name for task in turn.started}
        for seen in turn.steps:
            took = (seen.ended_ns - seen.began_ns) / _MS if seen.began_ns else 0.0
            line = StepLine(seen.call.function, seen.calls, seen.error or None, took)
            self._steps.setdefault(seen.task.id, []).append(line)
        for wait, _ in turn.left:
            request = wait.request
            if request.order is None:
                continue
            order, task = request.order, request.task
            until_ms = None if order.duration_ms is None else now_ms + order.duration_ms
            what = f"signal '{order.signal}'" if order.signal else f"{(order.duration_ms or 0) / 1000:g} s to pass"
            self.waits[task.id] = WaitSeen(_label(task.run.record), task.action.name, what, until_ms)
        for answer, attempt, began_ns, ended_ns in turn.answers:
            task = answer.task
            self.began_ns = self.began_ns or began_ns
            self.answered_ns = ended_ns
            self.waits.pop(task.id, None)
            self.running.pop(task.id, None)
            report = answer.error if isinstance(answer, ActionFailed) else None
            self.attempts.append(
                AttemptSeen(
                    _label(task.run.record),
                    task.action.name,
                    task.path,
                    attempt,
                    None if report is None else str(report),
                    "" if report is None else report.traceback,
                    (ended_ns - began_ns) / _MS,
                    self._steps.pop(task.id, []),
                )
            )
        for fact in turn.notes:
            if isinstance(fact, DeadLetter):
                self._bury(fact)
            elif isinstance(fact, SkipTask):
                self.skipped.append(f"action '{fact.task.action.name}' was skipped by its policy: {fact.error}")

    def _bury(self, letter: DeadLetter) -> None:
        reason = letter.reason
        attempts = int(reason.get("attempt", "0"))
        self.dead.append(
            DeadLetterSeen(
                _label(letter.record), reason.get("action"), str(letter.error), attempts, letter.error.traceback
            )
        )


def _label(record: Record) -> str:
    """Return where a record was read, also when it has come through a repartition topic since."""
    origin = dict(record.headers).get(ORIGIN_HEADER)
    return record.run_id if origin is None else origin.decode()


class WatchedSink:
    """A sink that also says what it is given, and when that is visible.

    Args:
        sink: The sink.
        on_output: Told of each output.
        on_published: Told when outputs have become visible.
    """

    def __init__(self, sink: Sink, on_output: Callable[[bytes | None], None], on_published: Callable[[], None]) -> None:
        self._sink = sink
        self._on_output = on_output
        self._on_published = on_published
        self.name: str = sink.name
        self.guarantee: Guarantee = sink.guarantee

    @property
    def record_max_bytes(self) -> int | None:
        """See `Sink`."""
        return self._sink.record_max_bytes

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Open the sink."""
        await self._sink.open(prepared)

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Give the sink a record, and tell."""
        self._sink.write(record)
        if isinstance(record, EmitRecord):
            self._on_output(record.value)

    def barrier(self, checkpoint: int) -> None:
        """Close the sink's epoch."""
        self._sink.barrier(checkpoint)

    async def stage(self, checkpoint: int) -> Staged:
        """Stage the sink's epoch."""
        return await self._sink.stage(checkpoint)

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Publish the sink's epoch, and tell."""
        await self._sink.publish(checkpoint, staged)
        self._on_published()

    async def close(self) -> None:
        """Close the sink."""
        await self._sink.close()
