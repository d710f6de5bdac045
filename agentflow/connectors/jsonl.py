"""JSON Lines files as a source: read once from beginning to end, or followed as they grow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from agentflow.api.codecs import JSON
from agentflow.api.durations import duration_ms
from agentflow.connectors.file_source import FileSource, Paths
from agentflow.connectors.follow.identity import is_of_follow
from agentflow.connectors.line_format import LineFormat
from agentflow.connectors.lines import RECORD_MAX_BYTES, LineSplitter
from agentflow.connectors.stores import is_url
from agentflow.core.records import Record
from agentflow.errors import SourceError
from agentflow.runtime.settings import ObjectStoreSettings

if TYPE_CHECKING:
    from agentflow.connectors.follow.follower import Follower


class JsonlSource:
    """Lines of files, in the order of the sorted paths; a file's label is its path, an offset is a byte offset.

    The end of the last file is the end of input; files that grow later are read on by the next run.

    With ``follow`` there is no end: files are read on as they grow, new ones are found, and rotation neither loses nor repeats a line
    (`connectors.follow`). A last line is a record when its newline has come. A directory stands for all its files; none has to be
    there yet; a label is no path then.

    Args:
        path: Path or glob pattern (`**` goes through directories), or several. A pattern finds no names that start with
            ``.`` or ``_``, which are staging. Or URLs of an object store, and patterns of them (`connectors.file_source`).
        record_max_bytes: A longer line is returned with its first ``record_max_bytes + 1`` bytes only.
        store: How object stores are reached.
        follow: Read files on as they grow.
        poll_interval: Look so often (``"1s"``) instead of being told by the system: for network file systems.
        rotate_wait: How long a file is read on that was renamed to what no pattern finds.
    """

    name = "jsonl"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(
        self,
        path: Paths,
        *,
        record_max_bytes: int = RECORD_MAX_BYTES,
        store: ObjectStoreSettings | None = None,
        follow: bool = False,
        poll_interval: timedelta | str | None = None,
        rotate_wait: timedelta | str = "5s",
    ) -> None:
        paths = (path,) if isinstance(path, str | os.PathLike) else path
        patterns = tuple(os.fspath(one) for one in paths)
        self._files: FileSource | None = None
        self._follower: Follower | None = None
        if not follow:
            if poll_interval is not None:
                raise ValueError("poll_interval is for files that are followed: give follow=True as well")
            self._files = FileSource(patterns, LineFormat(record_max_bytes), store)
            return
        if any(map(is_url, patterns)):
            raise ValueError("objects of a store do not grow: follow=True is for local files")
        from agentflow.connectors.follow.follower import Follower

        self._follower = Follower(
            patterns,
            lambda position, _: LineSplitter("", position, record_max_bytes),
            poll_interval_ms=None if poll_interval is None else duration_ms(poll_interval),
            rotate_wait_ms=duration_ms(rotate_wait),
        )

    @property
    def _reader(self) -> FileSource | Follower:
        reader = self._files or self._follower
        assert reader is not None
        return reader

    async def open(self, positions: Mapping[str, int]) -> None:
        """Find the files and check that each one can be read from its position.

        A position whose file no pattern names any more is ignored: the input was changed on purpose.

        Raises:
            SourceError: There is no file, or one cannot be read, or has changed; or the job has followed its files so far.
        """
        if self._follower is None:
            _refuse_followed(positions)
        await self._reader.open(positions)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next lines; blank lines are skipped. Blocks are read in a thread."""
        return await self._reader.fetch(records_max)

    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Keep all positions; of followed files those that are there."""
        return positions if self._follower is None else self._follower.barrier(positions)

    async def release(self, positions: Mapping[str, int]) -> None:
        """Go on: a checkpoint has completed."""
        if self._follower is not None:
            await self._follower.release(positions)

    async def close(self) -> None:
        """Close the file."""
        await self._reader.close()


def _refuse_followed(positions: Mapping[str, int]) -> None:
    """Refuse to read from the beginning what was followed before."""
    if any(is_of_follow(label) for label in positions):
        raise SourceError(
            "the job has followed its files so far, and would read them again from the beginning",
            expected="follow: true",
            fix="set it again, or read the files in a job of another name",
        )
