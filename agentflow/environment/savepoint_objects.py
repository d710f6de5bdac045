"""Savepoints below a prefix of an object store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentflow.connectors.object_store import ObjectStore
from agentflow.errors import StateError, StateForbidden, StateUnavailable
from agentflow.state.savepoint_storage import missing_file, write_durably

if TYPE_CHECKING:
    from agentflow.runtime.settings import ObjectStoreSettings


class ObjectStorage:
    """See `SavepointStorage`. Content is shared by a copy that the store makes itself.

    Args:
        url: ``s3://bucket/prefix``, ``gs://…``, ``az://…``.
        settings: How it is reached; None: as the variables of its vendor say.

    Raises:
        ValueError: The URL is none of an object store.
        NotConfigured: The package obstore is missing.
    """

    def __init__(self, url: str, settings: ObjectStoreSettings | None = None) -> None:
        self._store = ObjectStore(url.rstrip("/"), settings)

    @property
    def place(self) -> str:
        """See `SavepointStorage`."""
        return self._store.place

    def folders(self) -> Sequence[str]:
        """See `SavepointStorage`."""
        with self._told("listing savepoints", ""):
            names = [file.name for file in self._store.find()]
        return sorted({name.partition("/")[0] for name in names if "/" in name})

    def read(self, name: str) -> bytes | None:
        """See `SavepointStorage`."""
        with self._told("reading a savepoint", name):
            try:
                return b"".join(self._chunks(name))
            except FileNotFoundError:
                return None

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `SavepointStorage`."""
        with self._told("reading a savepoint", name):
            yield from self._content(name)

    def _content(self, name: str) -> Iterator[bytes]:
        try:
            yield from self._chunks(name)
        except FileNotFoundError as error:
            raise missing_file(f"{self.place}/{name}") from error

    def _chunks(self, name: str) -> Iterator[bytes]:
        file = self._store.open(name)
        for offset in range(0, file.size, file.block_bytes):
            yield file.read(offset, file.block_bytes)

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """See `SavepointStorage`."""
        with self._told("writing a savepoint", name):
            self._store.put(name, chunks)

    def share(self, name: str, shared: str) -> bool:
        """See `SavepointStorage`. What a store does not copy by itself (of S3: above 5 GB) is not shared."""
        with self._told("writing a savepoint", name):
            try:
                self._store.copy(shared, name)
            except ConnectionError:
                raise
            except OSError:
                return False
            return True

    def delete(self, folder: str, first: str) -> None:
        """See `SavepointStorage`."""
        with self._told("deleting a savepoint", folder):
            self._store.delete([f"{folder}/{first}"])
            self._store.delete([file.name for file in self._store.find(f"{folder}/")])

    def fetch(self, name: str, path: Path) -> None:
        """See `SavepointStorage`."""
        with self._told("reading a savepoint", name):
            write_durably(path, self._content(name))

    @contextlib.contextmanager
    def _told(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind: type[StateError] = StateUnavailable
            if isinstance(error, PermissionError | FileNotFoundError):
                kind = StateForbidden
            raise kind(
                f"{doing}: {error.strerror or error}",
                where={"object": f"{self.place}/{name}".rstrip("/")},
                expected="an object store that answers, and a user who may read and write there",
                fix=self._store.advice,
            ) from error
