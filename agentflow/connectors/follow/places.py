"""Where followed files are: paths, patterns and directories."""

# ruff: noqa: PTH110, PTH112, PTH116, PTH118, PTH119, PTH120, PTH207, PTH208 - paths as given, which Path would rewrite

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agentflow.errors import SourceError

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".Z")
_SIBLINGS_MAX = 1_000
_ROTATIONS_DIGITS_MAX = 6  # more are a date

FileKey = tuple[int, int]
"""Device and inode: what a file is while it exists."""


class Found(NamedTuple):
    """A file that is there.

    Attributes:
        path: Its path; of several links to one file the first in order.
        status: What the file system says of it.
    """

    path: str
    status: os.stat_result

    @property
    def key(self) -> FileKey:
        """Device and inode."""
        return self.status.st_dev, self.status.st_ino


class Root(NamedTuple):
    """A directory in which files may appear.

    Attributes:
        path: Its path.
        key: Device and inode; None: it is not there.
        is_deep: Files may appear in directories below it too.
    """

    path: str
    key: FileKey | None
    is_deep: bool


class Places:
    """Paths, patterns (`**` goes through directories) and directories, of which every file is meant.

    Names that start with ``.`` or ``_`` are staging, and names that end as compressed files do (``.gz``) are rotated files that were
    read before; a pattern finds them only where it says so itself.

    Raises:
        SourceError: A path names what is neither a file nor a directory.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(patterns)
        for pattern in self._patterns:
            if not glob.has_magic(pattern) and os.path.exists(pattern):
                mode = os.stat(pattern).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise SourceError(
                        "the input is not a regular file",
                        where={"file": pattern},
                        expected="a file or a directory of files that grow",
                        fix="Read pipes with the source `stdin`.",
                    )

    def __str__(self) -> str:
        return ", ".join(self._patterns)

    def find(self) -> dict[FileKey, Found]:
        """Return the files that are there, each once."""
        found: dict[FileKey, Found] = {}
        for pattern in self._patterns:
            for path in self._paths(pattern):
                try:
                    file = Found(path, os.stat(path))
                except OSError:  # it went while we looked, or is a link to nothing
                    continue
                if stat.S_ISREG(file.status.st_mode):
                    found.setdefault(file.key, file)
        return found

    def siblings(self) -> Iterator[Found]:
        """Look at the files beside those that are meant, where rotation may have put them; the first thousand of a directory."""
        for directory in sorted({os.path.dirname(path) or "." for path in self._searched()}):
            try:
                with os.scandir(directory) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_file() and not is_compressed(entry.name))
            except OSError:
                continue
            for name in names[:_SIBLINGS_MAX]:
                path = os.path.join(directory, name)
                try:
                    yield Found(path, os.stat(path))
                except OSError:
                    continue

    def roots(self) -> list[Root]:
        """Return the directories to watch."""
        roots: dict[str, bool] = {}
        for pattern in self._patterns:
            path, is_deep = _root(pattern)
            roots[path] = roots.get(path, False) or is_deep
        return [Root(path, _key(path), is_deep) for path, is_deep in sorted(roots.items())]

    def _searched(self) -> Iterator[str]:
        for pattern in self._patterns:
            if not glob.has_magic(pattern):
                yield os.path.join(pattern, "") if os.path.isdir(pattern) else pattern
            else:
                yield from (path for path in self._paths(pattern))
                yield os.path.join(_root(pattern)[0], "")

    def _paths(self, pattern: str) -> list[str]:
        if glob.has_magic(pattern) and not os.path.exists(pattern):
            return [path for path in sorted(glob.glob(pattern, recursive=True)) if _is_meant(path, pattern)]
        if os.path.isdir(pattern):
            try:
                names = sorted(os.listdir(pattern))
            except OSError:  # it went, or may not be read: the caller finds nothing, and says so
                return []
            return [os.path.join(pattern, name) for name in names if name[:1] != "." and _is_meant(name, "*")]
        return [pattern]


def is_compressed(name: str) -> bool:
    """Whether a file's name says that it is compressed."""
    return name.endswith(_COMPRESSED)


def rotation_order(path: str) -> tuple[str, int]:
    """Return what to sort paths by, so that ``app.log.2`` comes before ``app.log.1`` and that before ``app.log``."""
    stem, _, number = path.rpartition(".")
    return (stem, -int(number) - 1) if number.isdecimal() and len(number) <= _ROTATIONS_DIGITS_MAX else (path, 0)


def _is_meant(path: str, pattern: str) -> bool:
    name, asked = os.path.basename(path), os.path.basename(pattern)
    return (name[:1] != "_" or asked.startswith("_")) and (not is_compressed(name) or is_compressed(asked))


def _root(pattern: str) -> tuple[str, bool]:
    """Return the directory above all that a pattern finds, and whether that may be further below."""
    if not glob.has_magic(pattern):
        return (pattern, False) if os.path.isdir(pattern) else (os.path.dirname(pattern) or ".", False)
    fixed, rest = pattern, ""
    while glob.has_magic(fixed):
        fixed, name = os.path.split(fixed)
        rest = os.path.join(name, rest) if rest else name
    return fixed or ".", os.sep in rest or "**" in rest


def _key(path: str) -> FileKey | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
