"""Labels whose file is not where it was: rotation moved it, copied and truncated it, or somebody deleted it."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable

import msgspec

from agentflow.connectors.follow.file import FollowedFile
from agentflow.connectors.follow.identity import HEAD_BYTES, Label, evidence


class Match(enum.Enum):
    """How a lost file may be found again; tried in this order."""

    IN_PLACE = "in place"  # the inode is the same: it was at most renamed
    MOVED = (
        "moved"  # all that was read of it is in another place: it was copied and truncated, or came from another disk
    )
    SHORT_COPY = "short copy"  # it was copied and truncated, and its last lines were read and came after the copy


class LostFile(msgspec.Struct, eq=False):
    """What is known of a file whose place is not: enough to tell it from others that begin as it does.

    Attributes:
        label: Its label.
        inode: Where it was when it was found first.
        digest: Digest of its first line.
        position: Position behind the last record that was read.
        evidence: What its beginning is, up to the position; None: only the first line is known.
        head: Its beginning, where this process has seen it; empty: it was read by an earlier one.
        path: Its last path; empty as above.
        unread_bytes: How much of it was seen and not read.
        looks: How often it was looked for.
        is_found: It is no more lost.
    """

    label: str
    inode: int
    digest: str
    position: int
    evidence: int | None = None
    head: bytes = b""
    path: str = ""
    unread_bytes: int = 0
    looks: int = 0
    is_found: bool = False

    @classmethod
    def restored(cls, label: Label, position: int, evidence: int | None) -> LostFile:
        """Return a file of which a checkpoint has a position; nobody has looked for it yet."""
        return cls(str(label), label.inode, label.digest, position, evidence)

    @classmethod
    def of(cls, file: FollowedFile) -> LostFile:
        """Return a file that has a label and was there a moment ago."""
        assert file.label, "a file of which nothing was read is no loss"
        assert file.digest is not None, "a file with a label has a first line"
        unread = max(0, file.size - file.seen_to)
        return cls(
            file.label,
            file.key[1],
            file.digest,
            file.end,
            evidence(file.head, file.end),
            file.head,
            file.path,
            unread,
        )

    def is_content_of(self, file: FollowedFile, match: Match) -> bool:
        """Whether a file that it may be holds what was read under this label.

        Raises:
            OSError: The file cannot be read.
        """
        position = self.position
        if match is Match.SHORT_COPY:
            return self.head.startswith(file.head) if self.head else self._is_alike(file)
        if not self._is_alike(file):
            return False
        around = file.read_at(2, position - 1) if position else b"\n"
        # A last line without newline, read by a source that does not follow, ends where the newline may be now.
        return around[:1] == b"\n" or around[1:] in (b"", b"\n", b"\r")

    def _is_alike(self, file: FollowedFile) -> bool:
        """Whether a file begins as this one did, as far as a checkpoint can tell; of less than a KiB it knows the first line only."""
        if self.evidence is None or file.size < min(self.position, HEAD_BYTES):
            return True
        return evidence(file.head, self.position) == self.evidence


class LostSearch:
    """Which lost files a file may be; for one look.

    Args:
        lost: The lost files.
        inodes: Of all files that are there.
    """

    def __init__(self, lost: Iterable[LostFile], inodes: Collection[int]) -> None:
        self._inodes = inodes
        self._by_inode: dict[int, list[LostFile]] = {}
        self._by_digest: dict[str, list[LostFile]] = {}
        for one in sorted(lost, key=lambda one: -one.position):
            self._by_inode.setdefault(one.inode, []).append(one)
            self._by_digest.setdefault(one.digest, []).append(one)

    @property
    def is_going_on(self) -> bool:
        """Whether one is lost still."""
        return any(not one.is_found for same in self._by_digest.values() for one in same)

    def candidates(self, file: FollowedFile, match: Match) -> list[LostFile]:
        """Return those that are worth looking into the file, the one of which most was read first."""
        inode, digest, size = file.key[1], file.digest, file.size
        if digest is None:
            return []
        if match is Match.IN_PLACE:
            return [one for one in self._by_inode.get(inode, ()) if _may_be(one, digest) and size >= one.position]
        found = [one for one in self._by_digest.get(digest, ()) if _may_be(one, digest) and one.inode != inode]
        if match is Match.MOVED:
            return [one for one in found if size >= one.position]
        # An original that is not there was not truncated, so that a shorter file that begins alike is another one.
        return [one for one in found if size < one.position and one.inode in self._inodes]


def _may_be(one: LostFile, digest: str) -> bool:
    return one.digest == digest and not one.is_found
