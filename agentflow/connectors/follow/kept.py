"""What checkpoints hold of files that are followed; it lives on the loop, and sees no file.

Of each file its position, and beside it what the file began with (see `identity`). A file that is gone and read is left out, so there
are never more entries than two per file that is there. Labels are given here too, and only while no checkpoint is under way: which epoch
a label has would depend on whether that one completes.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agentflow.connectors.follow.identity import COUNT_NAME, EVIDENCE_SUFFIX, HEAD_BYTES, Label, evidence
from agentflow.connectors.follow.lost import LostFile


class _Kept(msgspec.Struct):
    start: int  # position when it was taken in by this process
    head: bytes = b""
    evidence: int | None = None  # of its first `evidence_length` bytes
    evidence_length: int = 0
    end: int | None = None  # it is gone, and this is behind its last record


class KeptPositions:
    """Positions of followed files from one checkpoint to the next."""

    def __init__(self) -> None:
        self._files: dict[str, _Kept] = {}
        self._forgotten = 0

    def restore(self, positions: Mapping[str, int]) -> list[LostFile]:
        """Begin with a checkpoint; return its files, which have to be found."""
        self._files = {}
        self._forgotten = positions.get(COUNT_NAME, 0)
        lost = []
        for name, position in positions.items():
            label = Label.parse(name)
            if label is not None:
                known = positions.get(name + EVIDENCE_SUFFIX) if position else None
                self._files[name] = _Kept(position, evidence=known, evidence_length=min(position, HEAD_BYTES))
                lost.append(LostFile.restored(label, position, known))
        return lost

    def begin(self, inode: int, digest: str, head: bytes, position: int = 0) -> str:
        """Give a file its label."""
        label = Label(inode, digest, self._forgotten)
        while str(label) in self._files:
            label = label._replace(twin=label.twin + 1)
        self._files[str(label)] = _Kept(position, head)
        return str(label)

    def see(self, label: str, head: bytes) -> None:
        """Take note of a file's beginning, of which more is known now."""
        kept = self._files[label]
        if len(kept.head) < len(head):
            kept.head = head

    def forget(self, label: str, end: int) -> None:
        """Take note that a file is gone; it is left out as soon as all that was read of it is applied."""
        if label in self._files:
            self._files[label].end = end

    def keep(self, positions: Mapping[str, int]) -> dict[str, int]:
        """Return what a checkpoint is to hold, given the positions of what was applied."""
        kept: dict[str, int] = {}
        gone = []
        for label, file in self._files.items():
            position = positions.get(label, file.start)
            if file.end is not None and position >= file.end:
                gone.append(label)
                continue
            kept[label] = position
            if position:
                length = min(position, HEAD_BYTES)
                if (file.evidence is None or length != file.evidence_length) and length <= len(file.head):
                    file.evidence, file.evidence_length = evidence(file.head, position), length
                if file.evidence is not None:
                    kept[label + EVIDENCE_SUFFIX] = file.evidence
        for label in gone:
            del self._files[label]
        self._forgotten += bool(gone)
        kept[COUNT_NAME] = self._forgotten
        return kept
