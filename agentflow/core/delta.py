"""What a checkpoint writes: rows of keyed state.

A row is addressed by (table, operator, key, name). The core decides rows and their values; how they are laid out in
column families or changelog records is the business of `state/`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from agentflow.errors import StateVersionTooNew


class Table(enum.IntEnum):
    """The tables of keyed state. The numbers are part of the stored format: append, never renumber."""

    MEMORY = 1  # short-term memory: key = operator key, name = dotted path
    RUNS = 2  # admitted, unfinished runs: name = run id
    TIMERS = 3  # registered timers: name = timer name
    META = 4  # one row per name, key = b"": positions, segmented queue, incarnation
    STEPS = 7  # live journal records of unfinished runs: name = run id, task path, step path
    SIGNALS = 8  # signals that nobody has waited for yet: name = signal name, correlation, position
    RESULTS = 9  # answers to requests, for a while: key = b"", name = request id or run id


RESTORED_TABLES = (Table.META, Table.RUNS, Table.TIMERS, Table.STEPS, Table.SIGNALS)
"""What an operator is restored from; memory is read when an action asks for it."""

StateWrite = tuple[Table, int, bytes, str, bytes | None]
"""One row of an epoch delta: table, operator, key, name, value; None deletes it.

A plain tuple, because a checkpoint makes one for every changed entry: a named one takes three times as long.
"""


class StoredRow(msgspec.Struct, frozen=True, gc=False):
    """One row as keyed state returns it at restore."""

    operator: int
    key: bytes
    name: str
    value: bytes


POSITIONS_NAME = "positions"
"""Name of the META row of the first operator that holds the source positions: label → next offset."""

INCARNATION_NAME = "incarnation"
"""Name of the one that holds the id of the state."""

JOURNAL_NAME = "journal"
"""Name of the one that holds the position up to which the checkpoint has the journal."""

decode_positions = msgspec.msgpack.Decoder(dict[str, int]).decode


SLICE_ENTRIES_MAX = 2_000
"""Rows handed over, encoded or applied in one go: about 2 ms of the loop (a WriteBatch of 10,000 holds the GIL 8 ms)."""

DeltaSlices = Iterator[list[StateWrite]]
"""An epoch delta, at most `SLICE_ENTRIES_MAX` rows at a time; the consumer yields to the loop between slices."""


def check_format(what: str, found: int, known: int) -> None:
    """Refuse what a newer version has stored.

    Args:
        what: What it is, for the message.
        found: Version of its format.
        known: The last version that is known here.

    Raises:
        StateVersionTooNew: It is newer.
    """
    if found > known:
        raise StateVersionTooNew(f"{what} has format {found}", expected=f"at most {known}", fix="upgrade agentflow")
