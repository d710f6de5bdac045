"""Memory as files: JSON lines and Parquet, written as they are read, visible when they are whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from agentflow.errors import ConfigError, NotConfigured
from agentflow.state.directory import sync_directory
from agentflow.state.memory_reader import MemoryEntry, key_text
from agentflow.state.rocksdb_errors import corrupted
from agentflow.state.savepoint_storage import storage_error
from agentflow.state.typed_json import json_text, kind_of, stored_as_json, typed

_ROWS_PER_GROUP = 20_000
_GROUP_BYTES = 16 * 2**20
_ROWS_PER_TELL = 10_000


def export_memory(entries: Iterable[MemoryEntry], path: Path, tell: Callable[[int], object] = lambda rows: None) -> int:  # noqa: ARG005
    """Write memory to a file and return the number of its rows.

    Args:
        entries: What to write.
        path: The file; ``.jsonl`` and ``.parquet`` say what it is. An existing one is replaced when the new one is whole.
        tell: Told of rows written; often.

    Raises:
        ConfigError: Its name says neither, or its directory is not there.
        NotConfigured: Parquet is wanted, and pyarrow is not there.
        StateError: It cannot be written.
    """
    writers: dict[str, Callable[[Iterable[MemoryEntry], IO[bytes]], Iterator[int]]] = {
        ".jsonl": _write_lines,
        ".parquet": _write_parquet,
    }
    write = writers.get(path.suffix)
    if write is None:
        raise ConfigError([f"{path}: the name of the file ends with .jsonl or .parquet, which says what is written"])
    if not path.parent.is_dir():
        raise ConfigError([f"{path}: there is no directory {path.parent}\nhelp: make it, or name another file"])
    draft = path.with_name(f".{path.name}.new")
    rows = 0
    try:
        with draft.open("wb") as file:
            for rows in write(entries, file):
                tell(rows)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_directory(path.absolute().parent)
    except OSError as error:
        raise storage_error(error, "exporting memory", path) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return rows


def entry_as_json(entry: MemoryEntry) -> dict[str, Any]:
    """Return one entry as JSON's own types: key and value typed, as `typed_json` says."""
    fields = {
        "agent": entry.agent,
        "key": typed(entry.key),
        "path": typed(entry.path),
        "value": value_as_json(entry),
    }
    if entry.used_ms is not None:
        fields["used-ms"] = entry.used_ms
    return fields


def value_as_json(entry: MemoryEntry) -> Any:  # noqa: ANN401 (what JSON can carry)
    """Return the value of an entry as JSON's own types.

    Raises:
        StateCorrupted: It cannot be read.
    """
    try:
        return stored_as_json(entry.stored)
    except (ValueError, IndexError) as error:
        raise corrupted(
            f"a memory value cannot be read: {error}", {"key": repr(entry.key), "path": entry.path}
        ) from error


def _write_lines(entries: Iterable[MemoryEntry], file: IO[bytes]) -> Iterator[int]:
    encode = msgspec.json.Encoder().encode
    rows = 0
    for rows, entry in enumerate(entries, 1):
        file.write(encode(entry_as_json(entry)))
        file.write(b"\n")
        if rows % _ROWS_PER_TELL == 0:
            yield rows
    yield rows


def _write_parquet(entries: Iterable[MemoryEntry], file: IO[bytes]) -> Iterator[int]:
    """Columns: agent, key (text as it is, others as JSON), key_kind, path, kind, value (JSON), used_at."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise NotConfigured(
            "Parquet needs pyarrow, which is not installed",
            fix="pip install 'agentflow[arrow]'; or export to a .jsonl file",
        ) from error
    schema = pa.schema(
        [
            pa.field("agent", pa.int32(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("key_kind", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("value", pa.string(), nullable=False),
            pa.field("used_at", pa.timestamp("ms", tz="UTC")),
        ]
    )
    rows = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(entries):
            columns = list(zip(*map(_cells, group), strict=True))
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            rows += len(group)
            yield rows
    yield rows


def _groups(entries: Iterable[MemoryEntry]) -> Iterator[list[MemoryEntry]]:
    group: list[MemoryEntry] = []
    size = 0
    for entry in entries:
        group.append(entry)
        size += len(entry.stored)
        if len(group) == _ROWS_PER_GROUP or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _cells(entry: MemoryEntry) -> tuple[object, ...]:
    key, value = typed(entry.key), value_as_json(entry)
    used_ms = entry.used_ms
    return (
        entry.agent,
        key if isinstance(key, str) else json_text(key),
        type(entry.key).__name__,
        key_text(entry.path).encode("utf-8", "backslashreplace").decode(),
        kind_of(entry.stored),
        json_text(value),
        None if used_ms is None else datetime.fromtimestamp(used_ms / 1000, tz=UTC),
    )
