"""Group commit: records of all operators of a subtask go to the journal in one append at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentflow.core.inputs import JournalAppended
from agentflow.runtime.observation import JournalSeen, monotonic_ns
from agentflow.runtime.ports import Journal


class JournalWriter:
    """Appends what has come while the last append was under way; keeps the order.

    Args:
        journal: The journal, already read.
        deliver: Takes the answers, one per operator and append; called on the loop.
        fail: Takes the error that ends the subtask.
        position: Behind what was read.
        seen: Told of appends, for observers; None: nobody looks.

    Attributes:
        position: Behind what is durable.
    """

    def __init__(
        self,
        journal: Journal,
        deliver: Callable[[int, JournalAppended], None],
        fail: Callable[[BaseException], None],
        position: int,
        seen: Callable[[JournalSeen], object] | None = None,
    ) -> None:
        self.position = position
        self._journal = journal
        self._deliver = deliver
        self._fail = fail
        self._seen = seen
        self._pending: list[tuple[int, bytes]] = []
        self._appending: asyncio.Task[None] | None = None

    def append(self, operator: int, record: bytes) -> None:
        """Take a record; it is appended behind all earlier ones, soon."""
        self._pending.append((operator, record))
        if self._appending is None:
            self._appending = asyncio.get_running_loop().create_task(self._append())

    async def _append(self) -> None:
        try:
            await asyncio.sleep(0)  # what can begin without these records begins first, and their number grows
            while self._pending:
                records, self._pending = self._pending, []
                began_ns = 0 if self._seen is None else monotonic_ns()
                self.position = await self._journal.append(records)
                if self._seen is not None:
                    self._seen(JournalSeen(len(records), began_ns, monotonic_ns()))
                counts: dict[int, int] = {}
                for operator, _ in records:
                    counts[operator] = counts.get(operator, 0) + 1
                for operator, count in counts.items():
                    self._deliver(operator, JournalAppended(count))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 (the subtask's edge: the job decides)
            self._fail(error)
        finally:
            self._appending = None

    async def release(self, position: int) -> None:
        """Delete what lies before ``position``: a checkpoint has what is needed of it."""
        await self._journal.release(position)

    async def close(self) -> None:
        """Wait for the append that is under way; what is pending is nobody's any more."""
        self._pending = []
        if self._appending is not None:
            await asyncio.wait([self._appending])
