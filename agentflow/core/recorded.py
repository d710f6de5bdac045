"""What the journal knows of an unfinished run, in memory: runs, their tasks, their steps."""

from __future__ import annotations

import msgspec

from agentflow.core.inputs import StepCall


class RecordedStep(msgspec.Struct, eq=False):
    """The last record of one step.

    Attributes:
        call: What was called.
        kind: A `RecordKind`.
        attempt: Attempt of the action that recorded it.
        row: The encoded record.
        is_durable: The journal, or a checkpoint, has it.
        is_asked: The attempt that runs has called it.
    """

    call: StepCall
    kind: int
    attempt: int
    row: bytes
    is_durable: bool
    is_asked: bool


class RecordedTask(msgspec.Struct, eq=False):
    """What is recorded of one task.

    Attributes:
        steps: Path of the step → its last record.
        endings: Attempt → encoded record of its completion, or of the failure of the last attempt.
        divergence: The attempt that runs has called another step than the recorded one.
    """

    steps: dict[str, RecordedStep]
    endings: dict[int, bytes]
    divergence: str | None = None


class RecordedRun(msgspec.Struct, eq=False):
    """What is recorded of one run.

    Attributes:
        key: Canonical encoding of the key.
        number: Admission number.
        is_timer: A timer started it.
        tasks: Path of the task → records.
    """

    key: bytes
    number: int
    is_timer: bool
    tasks: dict[str, RecordedTask]
