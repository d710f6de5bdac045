"""Savepoints as a running job sees them: its state is handed out between two checkpoints, and the job goes on.

What is in a savepoint, and why that is enough:

- A checkpoint is taken first. It takes everything that is live into keyed state: unfinished runs with their inputs, queued events and
  attempts, timers, early signals, and every record of the journal that belongs to an unfinished run. So a savepoint of a running job
  is exactly checkpoint N, and has no journal: a step whose record came before the barrier is answered from keyed state; one whose
  record came behind it belongs to the time behind the savepoint, as outputs do. Copying that rest as well would bring records of runs
  that are not in the state, whose keys would wait for inputs that the new place may not have.
- A stopped job cannot take a checkpoint. If it was stopped well, its last one has everything. If it was killed, its journal has
  records that no checkpoint has: they are copied with the state, which is then what the job itself would start from.
- Signals that were sent and not read yet lie beside the state; they are copied too, because nobody could send them again.
- A checkpoint that is decided and not completed (a job that was killed just then) is completed first, as the job would do when it
  starts: its outputs become visible where they belong, once.

What is not: outputs (they are elsewhere), and the input (sources go on at their positions).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from agentflow.core.delta import INCARNATION_NAME, POSITIONS_NAME, Table, decode_positions
from agentflow.core.epoch import META_NAME, decode_meta
from agentflow.runtime.ports import KeyedState, StateFacts

Export = Callable[[str], Awaitable[None]]
"""Lets the owner of the state hand it out to whoever waits for a request, by its id."""
WriteSavepoint = Callable[[Export, str], Awaitable[str]]
"""Writes a savepoint to a target, and returns where it is."""


def facts_of(state: KeyedState) -> StateFacts:
    """Return the facts of a state; a checkpoint of number 0 means that there is none."""
    positions: dict[str, int] = {}
    incarnation, plan_hashes = "", []
    for row in state.rows(Table.META):
        if row.name == META_NAME:
            plan_hashes.append(decode_meta(row.value).plan_hash)
        elif row.name == POSITIONS_NAME:
            positions = decode_positions(row.value)
        elif row.name == INCARNATION_NAME:
            incarnation = msgspec.msgpack.decode(row.value, type=str)
    return StateFacts(state.checkpoint, positions, plan_hashes, incarnation)
