"""What the journal knows of an unfinished run, in memory: runs, their tasks, their steps."""

from __future__ import annotations

import msgspec

from agentflow.core.effects import ResolveStep, RunStep
from agentflow.core.inputs import StepCall

PATCH = "ctx.patch"
"""Function of a record that says that a run goes the new way of a change."""


class RecordedStep(msgspec.Struct, eq=False):
    """The last record of one step.

    Attributes:
        call: What was called.
        kind: A `RecordKind`.
        attempt: Attempt of the action that recorded it.
        payload: The encoded result, error, or whatever the kind says.
        epoch: The epoch in which it was recorded.
        at_ms: When.
        is_durable: The journal, or a checkpoint, has it.
        is_asked: The attempt that runs has called it.
        then: What follows when it is durable; None: nothing.
    """

    call: StepCall
    kind: int
    attempt: int
    payload: bytes
    epoch: int
    at_ms: int
    is_durable: bool = False
    is_asked: bool = True
    then: RunStep | ResolveStep | None = None

    def another(self, called: StepCall) -> str:
        """Return how a call differs from what is recorded in its place."""
        recorded = self.call
        what = "with other arguments" if recorded.function == called.function else f"as {recorded.function}"
        place = f"step {called.path} calls {called.function} at {called.where}"
        return f"{place}, and is recorded {what}, called at {recorded.where}"


class RecordedTask(msgspec.Struct, eq=False):
    """What is recorded of one task.

    Attributes:
        steps: Path of the step → its last record.
        endings: Attempt → encoded record of its completion, or of its failure: of the last one, or of one that leaves an account.
        divergence: The attempt that runs has called another step than the recorded one.
        is_news: Something is recorded that the last checkpoint does not have; known after a recovery.
        failed_before: Last attempt of which an error was recorded before the recovery; 0: none.
    """

    steps: dict[str, RecordedStep]
    endings: dict[int, bytes]
    divergence: str | None = None
    is_news: bool = False
    failed_before: int = 0

    def unasked(self, attempt: int) -> StepCall | None:
        """Return a step of an attempt that is recorded and was not called again; None: there is none."""
        for step in self.steps.values():
            if step.attempt == attempt and not step.is_asked and step.call.function != PATCH:
                return step.call
        return None


class RecordedRun(msgspec.Struct, eq=False):
    """What is recorded of one run.

    Attributes:
        id: Id of the run.
        key: Canonical encoding of the key.
        number: Admission number.
        is_timer: A timer started it.
        tasks: Path of the task → records.
    """

    id: str
    key: bytes
    number: int
    is_timer: bool
    tasks: dict[str, RecordedTask]

    def task(self, path: str) -> RecordedTask:
        """Return what is recorded of a task, which may be nothing."""
        task = self.tasks.get(path)
        if task is None:
            task = self.tasks[path] = RecordedTask({}, {})
        return task
