"""Directories that connectors write."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def sync_directory(path: str | Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: str | Path) -> None:
    """Create a directory and its parents, durably, also while another process does; ``path`` is absolute."""
    missing, place = [], Path(path)
    while not os.path.lexists(place):
        missing.append(place)
        place = place.parent
    for new in reversed(missing):
        with contextlib.suppress(FileExistsError):
            new.mkdir()
        sync_directory(new.parent)
