"""Files of JSON lines as a sink."""

from __future__ import annotations

import os

from agentflow.connectors.part_files import PartFileSink
from agentflow.connectors.stores import file_store
from agentflow.runtime.settings import ObjectStoreSettings


class JsonlSink(PartFileSink):
    """Outputs as lines of files in a directory, exactly once.

    An epoch without outputs makes no file. The directory belongs to one job; published files may be taken away.

    Args:
        path: The directory; created, with its parents, where it is missing. Or the URL of a prefix in an object store.
        subtask: Number of the subtask that writes; several subtasks share a directory.
        store: How the object store is reached.
    """

    name = "jsonl"

    def __init__(
        self, path: str | os.PathLike[str], *, subtask: int = 0, store: ObjectStoreSettings | None = None
    ) -> None:
        super().__init__(file_store(path, store), ".jsonl", subtask=subtask)
