"""From a path to the store that it means."""

from __future__ import annotations

import os

from agentflow.connectors.directory_store import DirectoryStore
from agentflow.connectors.file_store import FileStore
from agentflow.runtime.settings import ObjectStoreSettings

_FILE = "file://"


def is_url(path: str) -> bool:
    """Return whether a path is one of an object store."""
    return "://" in path and not path.startswith(_FILE)


def local_path(path: str) -> str:
    """Return a path of this machine, which may be written as ``file:///…``."""
    return path.removeprefix(_FILE)


def file_store(path: str | os.PathLike[str], settings: ObjectStoreSettings | None = None) -> FileStore:
    """Return the store of a directory or of a prefix; nothing is opened.

    Raises:
        ValueError: A URL is none of an object store.
        NotConfigured: The package obstore is missing.
    """
    path = os.fspath(path)
    if not is_url(path):
        return DirectoryStore(local_path(path))
    from agentflow.connectors.object_store import ObjectStore

    return ObjectStore(path, settings)
