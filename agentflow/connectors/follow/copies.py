"""Which files a new one may be a copy of: all that it has so far is what they begin with."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from agentflow.connectors.follow.file import FollowedFile


class Originals:
    """Files by their beginning. Those that begin with given bytes are found without looking at the others.

    Args:
        files: The files; what is not known of their beginning is not compared.
    """

    def __init__(self, files: Iterable[FollowedFile]) -> None:
        self._by_head: dict[bytes, list[FollowedFile]] = {}
        for file in files:
            self._by_head.setdefault(file.head, []).append(file)
        self._heads = sorted(self._by_head)

    def add(self, file: FollowedFile) -> None:
        """Take in a file."""
        if file.head not in self._by_head:
            insort(self._heads, file.head)
        self._by_head.setdefault(file.head, []).append(file)

    def of(self, copy: FollowedFile) -> Iterator[FollowedFile]:
        """Return the files that are no shorter and begin as all that is known of ``copy``."""
        for at in range(bisect_left(self._heads, copy.head), len(self._heads)):
            if not self._heads[at].startswith(copy.head):
                return
            yield from (file for file in self._by_head[self._heads[at]] if file.size >= copy.size)
