"""What a job says about itself."""

from __future__ import annotations

import msgspec

from agentflow.runtime.counters import Amounts


class JobStatus(msgspec.Struct):
    """What a job is doing; a copy.

    Attributes:
        state: starting, restoring, running, restarting (until its delay is over), draining, finished, stopped or failed.
        records_in: Records admitted since the process began, rejected ones included, without what restarts have undone.
        records_out: Outputs given to the sink, likewise; visible with the next checkpoint.
        dead_letters: Records given to the dead-letter sink, likewise.
        undone: What restarts have undone of these three: no checkpoint has it, and it happens again.
        runs_in_flight: Unfinished runs.
        timers_pending: Timers that are set; of a job that has ended, when it ended.
        checkpoint: The last completed checkpoint.
        checkpoint_completed_ms: When it was, epoch milliseconds.
        checkpoint_ms: How long it took.
        checkpoint_bytes: Bytes of state in it.
        restarts: Restarts since the process began.
        restored_checkpoint: What the last start was restored from; 0: nothing.
        restored_runs: Unfinished runs that it had.
        restore_ms: How long that took.
        guarantees: What each sink gives, by role.
    """

    state: str = "starting"
    records_in: int = 0
    records_out: int = 0
    dead_letters: int = 0
    undone: Amounts = Amounts()
    runs_in_flight: int = 0
    timers_pending: int = 0
    checkpoint: int = 0
    checkpoint_completed_ms: int | None = None
    checkpoint_ms: int = 0
    checkpoint_bytes: int = 0
    restarts: int = 0
    restored_checkpoint: int = 0
    restored_runs: int = 0
    restore_ms: int = 0
    guarantees: dict[str, str] = {}
