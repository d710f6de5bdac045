"""What a subtask counts."""

from __future__ import annotations

import msgspec


class Counters(msgspec.Struct):
    """What a subtask has done since it started; read by the job's status."""

    records_in: int = 0
    records_out: int = 0
    dead_letters: int = 0
    checkpoint: int = 0
    checkpoint_completed_ms: int | None = None
    checkpoint_ms: int = 0
    checkpoint_bytes: int = 0
