"""From paths and patterns to files that can be opened."""

# ruff: noqa: PTH110, PTH112, PTH207 - a path stays as it was given, which Path would rewrite

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import msgspec

from agentflow.connectors.directory_store import LocalFile
from agentflow.connectors.file_store import FileReader
from agentflow.errors import SourceError


class InputFile(msgspec.Struct, frozen=True):
    """A file to read.

    Attributes:
        path: As it is named in labels and messages.
        open: Opens it. Raises OSError.
    """

    path: str
    open: Callable[[], FileReader]


def find_inputs(patterns: Sequence[str], known: Collection[str], *, may_grow: bool) -> list[InputFile]:
    """Return the files that paths and patterns name, sorted by path, each one once.

    Args:
        patterns: Paths, or patterns (`**` goes through directories), which find no names that start with ``.`` or ``_``.
        known: Paths that were read before: those that a pattern would name are files of it, even if they are gone, because their rest
            would be lost without a word.
        may_grow: Files may get longer while they are read.

    Raises:
        SourceError: A pattern finds nothing, or a name cannot be kept as a position.
    """
    found: set[str] = set()
    for pattern in patterns:
        if not glob.has_magic(pattern) or os.path.exists(pattern):
            found.add(pattern)
            continue
        matches = {*glob.glob(pattern, recursive=True), *(path for path in known if fnmatch.fnmatchcase(path, pattern))}
        matches = {path for path in matches if not os.path.isdir(path) and not _is_staging(path, pattern)}
        if not matches:
            raise nothing_matches(pattern)
        found |= matches
    for path in found:
        _check_name(path)
    return [InputFile(path, partial(LocalFile, path, may_grow=may_grow)) for path in sorted(found)]


def nothing_matches(pattern: str) -> SourceError:
    """Return the error of a pattern that finds no file."""
    return SourceError(
        "no file matches the pattern",
        where={"pattern": pattern},
        expected="at least one file",
        fix="Correct `path`, or put the files there.",
    )


def _is_staging(path: str, pattern: str) -> bool:
    """Whether readers skip the file: its name starts with ``_`` and the pattern does not ask for that."""
    return Path(path).name.startswith("_") and not Path(pattern).name.startswith("_")


def _check_name(path: str) -> None:
    """Refuse a name that cannot be kept as a position."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            "the name of the input file is no UTF-8, so its position cannot be kept",
            where={"file": repr(os.fsencode(path))},
            expected="a name in UTF-8",
            fix="Rename the file.",
        ) from error
