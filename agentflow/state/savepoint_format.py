"""The manifest of a savepoint: what it is of, and every file with size and checksum.

    <savepoint>/manifest.json                 {"manifest": {…}, "sha256": "…"}: the checksum is that of the manifest's own bytes
    <savepoint>/subtask-0/rocksdb/000012.sst  files by the names that the manifest gives them

The manifest is written last, whole or not at all. So what has one is a savepoint, and what has none never became one.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final, Literal

import msgspec

from agentflow.errors import StateCorrupted, StateVersionTooNew
from agentflow.runtime.ports import StateFacts

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = 1
"""Version of the manifest, and of everything about a savepoint that is not the state's own format."""


class SavepointFile(msgspec.Struct, frozen=True, rename="kebab"):
    """One file.

    Attributes:
        name: Its name within the savepoint, with slashes.
        size: Bytes.
        sha256: Checksum of its content, as hex digits.
        origin: What it was copied from: device, inode and time of change. The same origin is the same content, unread.
    """

    name: str
    size: int
    sha256: str
    origin: str = ""


class SubtaskSavepoint(StateFacts, frozen=True, rename="kebab"):
    """The state of one subtask.

    Attributes:
        subtask: Its number.
        partitioner: In a Kafka job, how its keys are spread over subtasks; empty: it is not known.
    """

    subtask: int
    partitioner: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="kebab", kw_only=True):
    """See the module's docstring. New fields get a default.

    Attributes:
        format: Version of this struct.
        state_format: Version of the state in the files.
        job: Name of the job.
        kind: embedded (RocksDB beside the job), or kafka (from the changelog).
        created_by: The agentflow that wrote it.
        created_at: When, UTC.
        ttl_ms: Time to live of short-term memory in the job; null: it has none.
        subtasks: State by subtask.
        files: Every file.
        copied: Bytes of them that no older savepoint had.
    """

    format: int = FORMAT
    state_format: int
    job: str
    kind: Literal["embedded", "kafka"]
    created_by: str
    created_at: datetime
    ttl_ms: int | None = None
    subtasks: list[SubtaskSavepoint]
    files: list[SavepointFile]
    copied: int = 0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def checkpoint(self) -> int:
        """The highest checkpoint number of its subtasks."""
        return max((subtask.checkpoint for subtask in self.subtasks), default=0)


class _Envelope(msgspec.Struct, frozen=True):
    manifest: msgspec.Raw
    sha256: str


class _Version(msgspec.Struct, frozen=True, rename="kebab"):
    """The fields that every version has."""

    format: int
    created_by: str = "an unknown version"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the content of the manifest file."""
    body = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Envelope(msgspec.Raw(body), hashlib.sha256(body).hexdigest())) + b"\n"


def decode_manifest(content: bytes, place: str) -> Manifest:
    """Read the content of a manifest file.

    Args:
        content: What the file holds.
        place: Where it is, for messages.

    Raises:
        StateVersionTooNew: A newer agentflow wrote it.
        StateCorrupted: It is damaged.
    """
    try:
        envelope = msgspec.json.decode(content, type=_Envelope)
        body = bytes(envelope.manifest)
        version = msgspec.json.decode(body, type=_Version)
        if version.format > FORMAT:
            raise StateVersionTooNew(
                f"the savepoint has format {version.format}, written by {version.created_by}",
                where={"savepoint": place},
                expected=f"format {FORMAT} or older",
                fix="run the newer agentflow",
            )
        if hashlib.sha256(body).hexdigest() != envelope.sha256:
            raise _damaged(place, "checksum mismatch")
        return msgspec.json.decode(body, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(place, str(error)) from error


def _damaged(place: str, why: str) -> StateCorrupted:
    return StateCorrupted(
        f"the manifest is damaged: {why}",
        where={"savepoint": place, "file": MANIFEST_FILE},
        expected="the manifest as agentflow wrote it",
        fix="take another savepoint",
    )
