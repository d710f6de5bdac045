"""State that is looked at: of a job that runs or not, and of savepoints."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agentflow.errors import ConfigError

if TYPE_CHECKING:
    from agentflow.runtime.settings import JobSettings
    from agentflow.state.memory_reader import MemoryReader
    from agentflow.state.savepoints import Savepoint


@contextlib.contextmanager
def memory_of_job(settings: JobSettings) -> Iterator[MemoryReader]:
    """Yield the memory of a job as its last checkpoint has it, beside the job where that runs.

    Of a Kafka job it is what the workers of this machine have.

    Raises:
        ConfigError: It is in the memory of a process.
        StateError: There is none, or it cannot be read.
    """
    if settings.state.dir is None:
        raise ConfigError(
            [f"the state of job '{settings.job}' is in memory, where nobody else can see it: set state.dir"]
        )
    with memory_in(Path(settings.state.dir), settings.state.ttl_ms) as reader:
        yield reader


@contextlib.contextmanager
def memory_in(state_dir: Path, ttl_ms: int | None = None) -> Iterator[MemoryReader]:
    """Yield the memory in a state directory.

    Args:
        state_dir: ``state.dir`` of the job.
        ttl_ms: Time to live of its memory; None: what is expired is shown too.
    """
    from agentflow.state.memory_reader import MemoryReader
    from agentflow.state.rocksdb_rows import StateView

    with contextlib.ExitStack() as opened:
        views = []
        for subtask in sorted(state_dir.glob("subtask-*")) or [state_dir / "subtask-0"]:
            view = StateView(subtask)
            opened.callback(view.close)
            views.append(view)
        yield MemoryReader(views, ttl_ms, time.time_ns() // 1_000_000)


@contextlib.contextmanager
def memory_of_savepoint(savepoint: Savepoint) -> Iterator[MemoryReader]:
    """Yield the memory of a savepoint, as it was when it was taken."""
    from agentflow.state.memory_reader import MemoryReader
    from agentflow.state.rocksdb_rows import StateView
    from agentflow.state.savepoints import fetch_subtask

    manifest = savepoint.manifest
    with contextlib.ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="agentflow-savepoint-")))
        views = []
        for subtask in manifest.subtasks:
            directory = scratch / f"subtask-{subtask.subtask}"
            fetch_subtask(savepoint, subtask.subtask, directory, is_checked=False)
            view = StateView(directory)
            opened.callback(view.close)
            views.append(view)
        yield MemoryReader(views, manifest.ttl_ms, round(manifest.created_at.timestamp() * 1000))
