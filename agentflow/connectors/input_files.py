"""From paths and patterns to files that can be opened."""

# ruff: noqa: PTH110, PTH112, PTH207 - a path stays as it was given, which Path would rewrite

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import msgspec

from agentflow.connectors.directory_store import LocalFile
from agentflow.connectors.file_store import FileReader
from agentflow.connectors.stores import is_url, local_path
from agentflow.errors import SourceError
from agentflow.runtime.settings import ObjectStoreSettings


class InputFile(msgspec.Struct, frozen=True):
    """A file to read.

    Attributes:
        path: As it is named in labels and messages.
        open: Opens it. Raises OSError.
    """

    path: str
    open: Callable[[], FileReader]


def find_inputs(
    patterns: Sequence[str], known: Collection[str], settings: ObjectStoreSettings | None = None, *, may_grow: bool
) -> list[InputFile]:
    """Return the files that paths and patterns name, sorted by path, each one once.

    Args:
        patterns: Paths or URLs, or patterns (`**` goes through directories), which find no names that start with ``.`` or ``_``.
        known: Paths that were read before: those that a pattern would name are files of it, even if they are gone, because their rest
            would be lost without a word.
        settings: How object stores are reached.
        may_grow: Local files may get longer while they are read.

    Raises:
        SourceError: A pattern finds nothing, or a name cannot be kept as a position.
        OSError: An object store cannot be listed.
    """
    found: dict[str, InputFile] = {}
    for pattern in map(local_path, patterns):
        if is_url(pattern):
            found |= _find_objects(pattern, known, settings)
            continue
        for path in _find_paths(pattern, known):
            _check_name(path)
            found[path] = InputFile(path, partial(LocalFile, path, may_grow=may_grow))
    return [found[path] for path in sorted(found)]


def _find_paths(pattern: str, known: Collection[str]) -> Collection[str]:
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [pattern]
    matches = {*glob.glob(pattern, recursive=True), *(path for path in known if fnmatch.fnmatchcase(path, pattern))}
    matches = {path for path in matches if not os.path.isdir(path) and not _is_staging(path, pattern)}
    if not matches:
        raise nothing_matches(pattern)
    return matches


def _find_objects(pattern: str, known: Collection[str], settings: ObjectStoreSettings | None) -> dict[str, InputFile]:
    from agentflow.connectors.object_store import ObjectStore, split_url

    try:
        scheme, bucket, key = split_url(pattern)
    except ValueError as error:
        raise SourceError(str(error), where={"path": pattern}, expected="the URL of an object, or a pattern") from error
    root = f"{scheme}://{bucket}"
    if pattern.endswith("/") or not key:
        raise SourceError(
            "the input is a prefix, not an object",
            where={"path": pattern},
            expected="the URL of an object, or a pattern",
            fix=f"Name its objects by a pattern: {pattern.rstrip('/')}/*",
        )
    if not glob.has_magic(key):
        store = ObjectStore(root, settings)
        return {pattern: InputFile(pattern, partial(store.open, key))}
    folder = key[: re.search(r"[*?[]", key).start()].rpartition("/")[0]  # type: ignore[union-attr]  # it has magic
    below = key.removeprefix(folder).lstrip("/")
    base = f"{root}/{folder}" if folder else root
    store, matches = ObjectStore(base, settings), re.compile(_expression(below))
    found = {
        f"{base}/{file.name}": InputFile(f"{base}/{file.name}", partial(store.open_found, file))
        for file in store.find()
        if matches.fullmatch(file.name)
    }
    for path in known:
        name = path.removeprefix(f"{base}/")
        if path not in found and name != path and matches.fullmatch(name):
            found[path] = InputFile(path, partial(store.open, name))
    if not found:
        raise nothing_matches(pattern)
    return found


def _expression(pattern: str) -> str:
    """Return a glob pattern as a regular expression: ``*`` stays within one part of a path, ``**`` does not."""
    parts = []
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]]+\])", pattern):
        fixed = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        if fixed is None and part.startswith("[") and part.endswith("]") and len(part) > len("[]"):
            fixed = f"[^{part[2:]}" if part.startswith("[!") else part
        parts.append(re.escape(part) if fixed is None else fixed)
    return "".join(parts)


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
