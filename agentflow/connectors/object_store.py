"""A prefix of an object store as a `FileStore`: s3://, gs://, az://, and memory:// for tests.

An object store has no rename and no lock. So this is how outputs become visible whole, once, and again after a crash; below the prefix:

    _staging/owner-00000                                  who writes here, and what it has published last
    _staging/part-00000-0000000012.jsonl.5c1f03aa         staged by the life 5c1f03aa of subtask 0
    part-00000-0000000012.jsonl                           published

1. `acquire` writes a new random name, its *life*, into the owner object, and keeps what that said of the last publishing.
2. `StagingFile.stage` sees that the life is still the owner, and uploads the file, which was collected on this machine: one object, there as
   a whole or not at all. The life is in its name, so a request of an earlier life that arrives late changes nothing.
3. `publish` copies each staged object to its name within the store (a reader sees it whole or not at all), writes into the owner object what
   it has published, and deletes the staged ones.

A publish that is repeated finds in the owner object that nothing is left to be copied; what is neither there nor staged is an error, never a
silent loss. One thing remains that a rename would not do: after a crash between the copy and the owner object, the copy is made again. It is
the same name and the same bytes, so only a reader that takes objects away, and forgets their names, sees them twice.

Rejected: a multipart upload that is completed by `publish`. It needs no copy, but the store's clients cannot complete the upload of a process
that is gone; and its parts are paid for until somebody aborts them. A staging name ends with the life and not with ``.jsonl``, so that no
pattern of a reader finds it, also where the reader does not skip ``_staging``.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from agentflow.connectors.file_store import FileReader, StagingFile, StoredFile
from agentflow.errors import NotConfigured
from agentflow.runtime.settings import ObjectStoreSettings

SCHEMES = ("s3", "gs", "az", "memory")
PART_MAX_BYTES = 2**28  # a store copies objects of a few GiB at most, and one that is copied in a moment fails seldom
_MEMORY_BYTES = 8 * 2**20  # of an epoch that is being written; more goes to a temporary file
_CHUNK_BYTES = 2**20
_BLOCK_BYTES = 8 * 2**20
_STAGING = "_staging/"
_TEXT_MAX = 500
_STATUS_OF_A_MOMENT = ("408", "409", "425", "429")


class Owner(msgspec.Struct):
    """What the owner object says.

    Attributes:
        life: Random name of who opened the place last.
        published: Staged names that were published last.
    """

    life: str
    published: list[str] = []


def split_url(url: str) -> tuple[str, str, str]:
    """Return scheme, bucket and key of a URL.

    Raises:
        ValueError: It is none of an object store.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in SCHEMES or not bucket:
        msg = f"'{url}' names no bucket; such as s3://bucket/prefix (known are {', '.join(f'{one}://' for one in SCHEMES)})"
        raise ValueError(msg)
    return scheme, bucket, key.strip("/")


class ObjectStore:
    """Objects below a prefix.

    Args:
        url: ``s3://bucket/prefix``, ``gs://…``, ``az://container/prefix``; ``memory://name/prefix`` lives as long as the process.
        settings: How it is reached.

    Raises:
        ValueError: The URL is none of an object store.
        NotConfigured: The package obstore is missing.
    """

    part_max_bytes: int | None = PART_MAX_BYTES
    advice = "Check the bucket, and endpoint, region and credentials (object-store.*); see that the server answers."

    def __init__(self, url: str, settings: ObjectStoreSettings | None = None) -> None:
        scheme, bucket, key = split_url(url)
        self.place = url
        self._prefix = f"{key}/" if key else ""
        self._client = _client(scheme, bucket, settings or ObjectStoreSettings())
        self._owner_name = ""
        self._owner: Owner | None = None

    def is_there(self) -> bool:
        """See `FileStore`."""
        return bool(self._names(_STAGING))

    def acquire(self, owner: str) -> None:
        """See `FileStore`."""
        self._owner_name = f"{_STAGING}owner-{owner}"
        before = self._read_owner()
        self._owner = Owner(secrets.token_hex(4), before.published if before is not None else [])
        try:
            self._write_owner()
        except FileNotFoundError as error:  # nothing has to be there for that but the bucket
            raise OSError(errno.EINVAL, error.strerror) from error

    def release(self) -> None:
        """See `FileStore`."""
        self._owner = None

    def begin(self, prefix: str) -> StagingFile:  # noqa: ARG002 (nothing has that name before it is staged)
        """See `FileStore`."""
        return _Upload(self)

    def sweep(self, prefix: str, kept: frozenset[str]) -> None:
        """See `FileStore`."""
        staged = self._names(f"{_STAGING}{prefix}")
        self.delete([name for name in staged if name not in kept])

    def publish(self, staged: Sequence[str]) -> list[str]:
        """See `FileStore`: it always can tell, so nothing is missing that is no error."""
        assert self._owner is not None, "a store is acquired before it is written"
        if self._owner.published != list(staged):
            for name in staged:
                self.copy(name, name.removeprefix(_STAGING).rpartition(".")[0])
            self.confirm()
            self._owner.published = list(staged)
            self._write_owner()
        self.delete(staged)
        return []

    def has(self, name: str) -> bool:
        """See `FileStore`."""
        try:
            with self._told():
                self._client.head(self._key(name))
        except FileNotFoundError:
            return False
        return True

    def find(self, prefix: str = "") -> list[StoredFile]:
        """See `FileStore`."""
        return [
            file for file in self._list(prefix) if not any(part.startswith((".", "_")) for part in file.name.split("/"))
        ]

    def open(self, name: str) -> FileReader:
        """See `FileStore`."""
        with self._told():
            found = self._client.head(self._key(name))
        return _ObjectReader(self, name, found["size"], found["e_tag"])

    def open_found(self, file: StoredFile) -> FileReader:
        """Open an object as a listing showed it, without a request."""
        return _ObjectReader(self, file.name, file.size, file.version)

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """See `FileStore`."""
        with self._told():
            self._client.put(self._key(name), iter(chunks))

    def copy(self, name: str, to: str) -> None:
        """See `FileStore`."""
        with self._told():
            self._client.copy(self._key(name), self._key(to))

    def delete(self, names: Sequence[str]) -> None:
        """See `FileStore`."""
        keys = list(map(self._key, names))
        with self._told(), contextlib.suppress(FileNotFoundError):
            if keys:
                self._client.delete(keys)
            return
        for key in keys:  # some stores call it an error when one is not there
            with self._told(), contextlib.suppress(FileNotFoundError):
                self._client.delete(key)

    def confirm(self) -> None:
        """See that nobody else has taken the place.

        Raises:
            BlockingIOError: Somebody has.
        """
        if self._owner is not None:
            found = self._read_owner()
            if found is None or found.life != self._owner.life:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process has taken the place over")

    def upload(self, name: str, content: Any) -> str:  # noqa: ANN401 (a binary file)
        """Stage a file that is open at its beginning; return the staged name."""
        self.confirm()
        life = self._owner.life if self._owner is not None else secrets.token_hex(4)
        staged = f"{_STAGING}{name}.{life}"
        with self._told():
            self._client.put(self._key(staged), content)
        return staged

    def read(self, name: str, version: str | None, offset: int, length: int) -> bytes:
        """Return bytes of an object, of which there are some."""
        options: dict[str, Any] = {"range": (offset, offset + length)}
        if version is not None and not version.startswith("W/"):  # a weak ETag matches nothing
            options["if_match"] = version
        with self._told():
            return bytes(self._client.get(self._key(name), options=options).bytes())

    def _read_owner(self) -> Owner | None:
        try:
            with self._told():
                content = bytes(self._client.get(self._key(self._owner_name)).bytes())
            return msgspec.json.decode(content, type=Owner)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise OSError(errno.EINVAL, f"{self._owner_name} is no owner object: {error}") from error

    def _write_owner(self) -> None:
        with self._told():
            self._client.put(self._key(self._owner_name), msgspec.json.encode(self._owner))

    def _names(self, prefix: str) -> list[str]:
        return [file.name for file in self._list(prefix)]

    def _list(self, prefix: str) -> list[StoredFile]:
        folder, _, _ = self._key(prefix).rpartition("/")  # a listing goes by whole parts of a name
        found = []
        with self._told():
            for chunk in self._client.list(folder or None, chunk_size=1000):
                for entry in chunk:
                    name = entry["path"].removeprefix(self._prefix)
                    if name.startswith(prefix):
                        found.append(StoredFile(name, entry["size"], entry["e_tag"]))
        return sorted(found, key=lambda file: file.name)

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name}"

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say what the client says as the operating system would."""
        from obstore import exceptions

        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, _reason(error)) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise PermissionError(errno.EACCES, _reason(error)) from error
        except exceptions.PreconditionError as error:
            raise OSError(errno.ESTALE, _reason(error)) from error
        except (exceptions.NotSupportedError, exceptions.InvalidPathError, ValueError) as error:
            raise OSError(errno.EINVAL, _reason(error)) from error
        except exceptions.BaseError as error:
            if _is_final(error):
                raise OSError(errno.EINVAL, _reason(error)) from error
            raise ConnectionError(errno.EIO, _reason(error)) from error


class _Upload:
    """A `StagingFile` that is collected on this machine and uploaded when it is staged."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115 (closed by `stage` or `discard`)

    def write(self, content: bytes | memoryview) -> int:
        return self._file.write(content)

    def chunks(self) -> Iterator[bytes]:
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK_BYTES):
            yield chunk

    def stage(self, name: str) -> str:
        self._file.seek(0)
        staged = self._store.upload(name, self._file)
        self._file.close()
        return staged

    def discard(self) -> None:
        self._file.close()


class _ObjectReader:
    """A `FileReader` of an object; a request is answered from the version that was opened, or not at all."""

    block_bytes = _BLOCK_BYTES

    def __init__(self, store: ObjectStore, name: str, size: int, version: str | None) -> None:
        self._store = store
        self._name = name
        self.size = size
        self.version: str | None = version

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return self._store.read(self._name, self.version, offset, length) if length > 0 else b""

    def close(self) -> None:
        """There is nothing to close."""


_memory_stores: dict[str, Any] = {}
_memory_lock = threading.Lock()


def _client(scheme: str, bucket: str, settings: ObjectStoreSettings) -> Any:  # noqa: ANN401 (one of the stores of obstore)
    try:
        from obstore import store
    except ImportError as error:
        raise NotConfigured(
            f"{scheme}:// needs the package obstore, which cannot be imported ({error})",
            fix="pip install 'agentflow[object-store]'",
        ) from error
    if scheme == "memory":
        with _memory_lock:
            return _memory_stores.setdefault(bucket, store.MemoryStore())
    endpoint = settings.endpoint
    if endpoint and scheme == "s3" and not settings.path_style:
        protocol, _, host = endpoint.partition("://")
        endpoint = f"{protocol}://{bucket}.{host}"
    timeout, retry_timeout = (timedelta(milliseconds=ms) for ms in (settings.timeout_ms, settings.retry_timeout_ms))
    named: dict[str, dict[str, Any]] = {
        "s3": {
            "endpoint": endpoint,
            "region": settings.region,
            "virtual_hosted_style_request": not settings.path_style,
            "access_key_id": settings.access_key_id,
            "secret_access_key": settings.secret_access_key,
            "session_token": settings.session_token,
        },
        "gs": {"base_url": endpoint, "service_account": settings.service_account_file},
        "az": {"endpoint": endpoint, "account_name": settings.account, "account_key": settings.account_key},
    }
    config = {name: value for name, value in named[scheme].items() if value is not None}
    if settings.anonymous:
        config["skip_signature"] = True
    make = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}[scheme]
    return make(
        bucket,
        config=config,
        client_options={
            "timeout": timeout,
            "connect_timeout": min(timeout, timedelta(seconds=5)),
            "allow_http": True,  # where somebody names such an endpoint, here or in a variable of the vendor
        },
        retry_config={
            "max_retries": 100 if retry_timeout else 0,
            "retry_timeout": retry_timeout,
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
        },
    )


def _is_final(error: Exception) -> bool:
    """Return whether the server has said that a request is wrong: no such bucket, another region, unknown credentials.

    The client says that in words only. Where they change, such a request is repeated for a while, as one that found no server.
    """
    status = re.search(r"status code: ([34]\d\d)", str(error))
    return status is not None and status[1] not in _STATUS_OF_A_MOMENT


def _reason(error: Exception) -> str:
    """Return what a client says in one line: without what it says for its own developers, and without the marks of XML."""
    text, _, _ = str(error).partition("\n\nDebug source")
    text = re.sub(r"<\?xml[^>]*>|<(RequestId|HostId|Resource|BucketName|Key)>[^<]*</\1>", "", text)
    text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 2] + " …"
