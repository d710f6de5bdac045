"""What a subtask counts, and what of it a restart undoes.

What is counted behind the barrier of the last completed checkpoint happens again after a restart, so it is taken back, and kept as
undone for those who count attempts. A request is not read again: it is recorded when it is admitted.
"""

from __future__ import annotations

import msgspec


class Amounts(msgspec.Struct, frozen=True):
    """What is counted and can be undone.

    Attributes:
        records_in: Records admitted, rejected ones included.
        records_out: Outputs given to the sink.
        dead_letters: Records given to the dead-letter sink.
    """

    records_in: int = 0
    records_out: int = 0
    dead_letters: int = 0

    def plus(self, other: Amounts, sign: int = 1) -> Amounts:
        """Return the sum, or with ``sign`` -1 the difference."""
        return Amounts(
            self.records_in + sign * other.records_in,
            self.records_out + sign * other.records_out,
            self.dead_letters + sign * other.dead_letters,
        )


class Counters(msgspec.Struct):
    """What a subtask has done since it started; read by the job's status.

    Attributes:
        undone: What restarts have undone.
        completed: What was counted at the barrier of the last completed checkpoint.
        closing: Number of the last barrier, and what was counted at it.
    """

    records_in: int = 0
    records_out: int = 0
    dead_letters: int = 0
    checkpoint: int = 0
    checkpoint_completed_ms: int | None = None
    checkpoint_ms: int = 0
    checkpoint_bytes: int = 0
    undone: Amounts = Amounts()
    completed: Amounts = Amounts()
    closing: tuple[int, Amounts] = (0, Amounts())

    @property
    def amounts(self) -> Amounts:
        """What is counted now."""
        return Amounts(self.records_in, self.records_out, self.dead_letters)

    def admit_requests(self, count: int) -> None:
        """Count inputs that no restart undoes."""
        number, closing = self.closing
        self.records_in += count
        self.completed = self.completed.plus(Amounts(count))
        self.closing = (number, closing.plus(Amounts(count)))

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch."""
        self.closing = (checkpoint, self.amounts)

    def complete(self, checkpoint: int) -> None:
        """Note that the checkpoint of the last barrier is completed."""
        self.checkpoint = checkpoint
        self.completed = self.closing[1]

    def undo(self) -> None:
        """Take back what no completed checkpoint has."""
        self.undone = self.undone.plus(self.amounts).plus(self.completed, -1)
        self._set(self.completed)

    def recover(self, checkpoint: int) -> None:
        """Begin behind a checkpoint, which recovery has perhaps completed: that of the last barrier is counted again then."""
        number, closing = self.closing
        if checkpoint == number > self.checkpoint:
            self.undone = self.undone.plus(self.completed).plus(closing, -1)
            self.completed = closing
            self._set(closing)
        self.checkpoint = checkpoint

    def _set(self, amounts: Amounts) -> None:
        self.records_in, self.records_out, self.dead_letters = msgspec.structs.astuple(amounts)
