"""What tells files apart, whatever they are called: where they lie on the disk, and how they begin.

A followed file has a label that is no name, because a name is what rotation changes:

    file:1a2f-9c41d2e07b51.0       inode, digest of the first line, epoch
    file:1a2f-9c41d2e07b51.0~1     the same once more: the file was truncated and begins with the same line

The label follows from the file and from the last checkpoint alone, not from when the file was found or how much of it was there:
a record that is read again after a crash starts the run with the same id. The epoch counts how often a checkpoint has forgotten files,
so a label is not given again to a file that takes over the inode of a deleted one. The number of the device is left out: it changes
when a machine starts or a volume is mounted again.

Whether a file is still the one that was read is judged by more: its first KiB, as far as it was read, is what it was. A checkpoint
holds that as an entry of its own beside each position, ``file:1a2f-9c41d2e07b51.0!``.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

HEAD_BYTES = 1024
"""How much of a file's beginning is looked at."""
COUNT_NAME = "file:"
"""Name of the entry that counts how often files were forgotten."""
EVIDENCE_SUFFIX = "!"
_LABEL = re.compile(r"file:([0-9a-f]+)-([0-9a-f]{12})\.(\d+)(?:~(\d+))?")


class Label(NamedTuple):
    """A label taken apart.

    Attributes:
        inode: Of the file, when it was found.
        digest: Of its first line.
        epoch: How often files had been forgotten.
        twin: 0, or a number where a file with all that was there already.
    """

    inode: int
    digest: str
    epoch: int
    twin: int = 0

    def __str__(self) -> str:
        twin = f"~{self.twin}" if self.twin else ""
        return f"file:{self.inode:x}-{self.digest}.{self.epoch}{twin}"

    @classmethod
    def parse(cls, text: str) -> Label | None:
        """Return the label that ``text`` is; None: it is none."""
        found = _LABEL.fullmatch(text)
        return None if found is None else cls(int(found[1], 16), found[2], int(found[3]), int(found[4] or 0))


def is_of_follow(name: str) -> bool:
    """Whether an entry of a checkpoint's positions belongs to files that are followed."""
    return name.startswith(COUNT_NAME) and (name == COUNT_NAME or Label.parse(name.rstrip(EVIDENCE_SUFFIX)) is not None)


def first_line_digest(head: bytes) -> str | None:
    """Return the digest of the first line, or of the first KiB of a longer one; None: neither is there yet."""
    end = head.find(b"\n") + 1
    if not end:
        if len(head) < HEAD_BYTES:
            return None
        end = HEAD_BYTES
    return hashlib.blake2b(head[:end], digest_size=6).hexdigest()


def evidence(head: bytes, position: int) -> int:
    """Return what the first bytes of a file are, up to ``position`` or a KiB, as a number that a checkpoint can hold."""
    return int.from_bytes(hashlib.blake2b(head[: min(position, HEAD_BYTES)], digest_size=7).digest())
