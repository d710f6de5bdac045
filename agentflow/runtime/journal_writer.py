"""Group commit: records of all operators of a subtask go to the journal in one append at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentflow.core.inputs import JournalAppended
from agentflow.runtime.failing import Edge
from agentflow.runtime.observation import JournalSeen, monotonic_ns
from agentflow.runtime.ports import Journal


class JournalWriter:
    """Appends what has come while the last append was under way; keeps the order.

    Args:
        journal: The journal, already read.
        deliver: Takes the answers, one per operator and append; called on the loop, outside of any task.
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
        self._loop = asyncio.get_running_loop()
        self._edge = Edge(fail)
        self._pending: list[tuple[int, bytes]] = []
        self._is_due = self._is_closed = False
        self._appending: asyncio.Task[None] | None = None

    def append(self, operator: int, record: bytes) -> None:
        """Take a record; it is appended behind all earlier ones, soon."""
        self._pending.append((operator, record))
        if not self._is_due:
            self._append_soon()

    def _append_soon(self) -> None:
        """Append in the next turn of the loop but one: what can begin without the records begins first, and their number grows."""
        self._is_due = True
        self._loop.call_soon(self._loop.call_soon, self._append_pending)

    def _append_pending(self) -> None:
        if self._is_closed:
            return
        records, self._pending = self._pending, []
        began_ns = 0 if self._seen is None else monotonic_ns()
        with self._edge:
            position = self._journal.append_now(records)
            if position is None:
                self._appending = self._loop.create_task(self._append(records, began_ns))
            else:
                self._appended(records, position, began_ns)

    async def _append(self, records: list[tuple[int, bytes]], began_ns: int) -> None:
        try:
            position = await self._journal.append(records)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 (the subtask's edge: the job decides)
            self._fail(error)
        else:
            self._loop.call_soon(self._appended, records, position, began_ns)
        finally:
            self._appending = None

    def _appended(self, records: list[tuple[int, bytes]], position: int, began_ns: int) -> None:
        """Tell what is durable, and go on with what has come meanwhile."""
        self.position = position
        if self._is_closed:
            return
        if self._seen is not None:
            self._seen(JournalSeen(len(records), began_ns, monotonic_ns()))
        counts: dict[int, int] = {}
        for operator, _ in records:
            counts[operator] = counts.get(operator, 0) + 1
        for operator, count in counts.items():
            self._deliver(operator, JournalAppended(count))
        self._is_due = False
        if self._pending:
            self._append_soon()

    async def release(self, position: int) -> None:
        """Delete what lies before ``position``: a checkpoint has what is needed of it."""
        await self._journal.release(position)

    async def close(self) -> None:
        """Wait for the append that is under way; what is pending is nobody's any more."""
        self._is_closed = True
        if self._appending is not None:
            await asyncio.wait([self._appending])
