"""From a path to the store that it means."""

from __future__ import annotations

from agentflow.connectors.directory_store import DirectoryStore
from agentflow.connectors.file_store import FileStore


def file_store(path: str) -> FileStore:
    """Return the store of a directory; nothing is opened."""
    return DirectoryStore(path)
