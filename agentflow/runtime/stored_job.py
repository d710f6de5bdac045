"""What a job finds in its keyed state and journal when it starts, sorted by its agents."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import msgspec

from agentflow.core.delta import (
    INCARNATION_NAME,
    JOURNAL_NAME,
    POSITIONS_NAME,
    RESTORED_TABLES,
    StoredRow,
    Table,
    decode_positions,
)
from agentflow.errors import StateMismatch
from agentflow.runtime.ports import KeyedState


class StoredJob(msgspec.Struct, frozen=True):
    """A job as its last completed checkpoint, and its journal behind that, have it.

    Attributes:
        rows: Of each agent, by table; memory is not among them, it is read when asked for.
        journal: Records of each agent, in order.
        journal_end: Position behind them.
        positions: Source positions: label → next offset.
        incarnation: Id of the state; a new one for new state.
    """

    rows: list[dict[Table, list[StoredRow]]]
    journal: list[list[bytes]]
    journal_end: int
    positions: Mapping[str, int]
    incarnation: str


def incarnation_of(rows: Mapping[Table, list[StoredRow]]) -> str:
    """Return the id of the state that rows are of; empty: it has none yet."""
    found = next((row.value for row in rows.get(Table.META, ()) if row.name == INCARNATION_NAME), None)
    return "" if found is None else msgspec.msgpack.decode(found, type=str)


async def read_stored_job(state: KeyedState, agents: int) -> StoredJob:
    """Read what recovery needs.

    Raises:
        StateMismatch: The state is of another number of agents, or its journal of other state.
    """
    rows = _rows(state, agents)
    meta = {row.name: row.value for row in rows[0].get(Table.META, ())}
    incarnation = incarnation_of(rows[0]) or uuid.uuid4().hex
    positions = decode_positions(meta[POSITIONS_NAME]) if POSITIONS_NAME in meta else {}
    position = msgspec.msgpack.decode(meta[JOURNAL_NAME], type=int) if JOURNAL_NAME in meta else 0
    journal, end = await _journal(state, agents, position)
    return StoredJob(rows, journal, end, positions, incarnation)


def _rows(state: KeyedState, agents: int) -> list[dict[Table, list[StoredRow]]]:
    rows: list[dict[Table, list[StoredRow]]] = [{} for _ in range(agents)]
    for table in RESTORED_TABLES:
        of_table: list[list[StoredRow]] = [tables.setdefault(table, []) for tables in rows]
        for row in state.rows(table):
            if row.operator >= agents:
                raise StateMismatch(
                    f"the state has rows of operator {row.operator}, the job has {agents} agents",
                    expected="the same number of chained agents",
                    fix="start the former chain and let it drain, or use a new state directory",
                )
            of_table[row.operator].append(row)
    return rows


async def _journal(state: KeyedState, agents: int, position: int) -> tuple[list[list[bytes]], int]:
    """Return the journal's records of each agent, from ``position`` on, and the position behind them."""
    records: list[list[bytes]] = [[] for _ in range(agents)]
    if state.journal is None:
        return records, position
    found, end = await state.journal.read(position)
    if found and not state.checkpoint:
        raise StateMismatch(
            f"the journal has {len(found)} records, and there is no checkpoint",
            expected="a journal that begins behind the first checkpoint",
            fix="delete the journal, which belongs to state that was removed, or put that state back",
        )
    for operator, record in found:
        records[operator].append(record)
    return records, end
