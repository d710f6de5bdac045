"""What jobs are opened with: keyed state, signals, an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agentflow.runtime.ports import KeyedState, Signals
from agentflow.runtime.settings import JobSettings


def state_opener(settings: JobSettings) -> Callable[[], KeyedState]:
    """Return what opens the job's keyed state: RocksDB in ``state.dir``, or memory that lives as long as the process."""
    directory = settings.state.dir
    if directory is not None:

        def open_rocksdb() -> KeyedState:
            from agentflow.state.rocksdb import RocksDBKeyedState  # 20 ms that memory jobs do not pay

            journal = settings.journal
            return RocksDBKeyedState.open(
                f"{directory}/subtask-0",
                job=settings.job,
                free_min_bytes=settings.state.free_min_bytes,
                journal_sync_interval_ms=journal.sync_interval_ms if journal.sync == "interval" else None,
                beside=(Path(directory) / "signals",),
            )

        return open_rocksdb
    from agentflow.state.memory import MemoryKeyedState, MemoryStorage

    storage = MemoryStorage()  # survives restarts of the subtask within this process
    return lambda: MemoryKeyedState(storage)


def signals_opener(settings: JobSettings) -> Callable[[], Signals]:
    """Return what opens the signals of an embedded job: beside its state."""
    from agentflow.connectors.signal_spool import SignalList, SignalSpool

    directory = settings.state.dir
    if directory is not None:
        return lambda: SignalSpool(f"{directory}/signals")
    in_memory = SignalList()  # survives restarts of the subtask within this process
    return lambda: in_memory


def new_event_loop(*, is_uvloop_wanted: bool = True) -> asyncio.AbstractEventLoop:
    """Return a uvloop event loop, or asyncio's own where uvloop is not wanted or not to be had on this platform."""
    if is_uvloop_wanted:
        try:
            import uvloop  # not on every platform
        except ImportError:
            return asyncio.new_event_loop()
        return uvloop.new_event_loop()
    return asyncio.new_event_loop()
