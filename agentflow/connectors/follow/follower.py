"""Files that grow, as a source: what asyncio has to do with it. `FollowedFiles` does the work, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from agentflow.connectors.follow.file import FollowedFile, NewSplitter
from agentflow.connectors.follow.files import FollowedFiles, Reading
from agentflow.connectors.follow.identity import evidence, is_of_follow
from agentflow.connectors.follow.kept import KeptPositions
from agentflow.connectors.follow.lost import LostFile, Match
from agentflow.connectors.follow.places import Found, Places
from agentflow.connectors.follow.watching import DirectoryWatch, check_watching
from agentflow.core.records import Record
from agentflow.errors import AgentflowError, SourceUnavailable

_SWEEP_S = 5.0  # what a watch did not tell is seen so late
_NO_DIRECTORY_SWEEP_S = 0.5  # nothing to watch yet
_WATCH_BEGINS_S = 0.25
_LOOK_COST = (
    9  # so many times as long as a look took passes before the next one: a large directory takes a tenth of the time
)

logger = logging.getLogger("agentflow.connectors.follow")


class Follower:
    """Reads files on as they grow, through rotation and restarts.

    It has the methods of a `CheckpointedSource`. A format is what ``new_splitter`` makes of the blocks of a file.

    Args:
        patterns: Paths, glob patterns or directories.
        new_splitter: Makes what splits a file into records.
        poll_interval_ms: Look so often instead of watching; None: watch.
        rotate_wait_ms: How long a file is read on that was rotated to where no pattern finds it.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        new_splitter: NewSplitter,
        *,
        poll_interval_ms: int | None = None,
        rotate_wait_ms: int = 5_000,
    ) -> None:
        self._patterns = patterns
        self._new_splitter = new_splitter
        self._poll_interval_s = None if poll_interval_ms is None else poll_interval_ms / 1000
        self._rotate_wait_s = rotate_wait_ms / 1000
        self._kept = KeptPositions()
        self._places: Places | None = None
        self._files: FollowedFiles | None = None
        self._watch: DirectoryWatch | None = None
        self._changed = asyncio.Event()
        self._no_checkpoint = asyncio.Event()
        self._reading: asyncio.Task[Reading] | None = (
            None  # until its records are in _ready: a cancelled fetch loses nothing
        )
        self._ready: deque[Record] = deque()
        self._next_look_s = 0.0
        self._sweep_s = _SWEEP_S
        self._is_wait_told = False

    async def open(self, positions: Mapping[str, int]) -> None:
        """Find the files of ``positions`` wherever they are now. It is no error that there are none yet.

        Positions of a source that read these files without following them are taken over.

        Raises:
            SourceError: A path is neither a file nor a directory, or the directories cannot be watched.
            SourceUnavailable: A file cannot be read; another time it may.
            NotConfigured: The package that watches is missing.
        """
        await self.close()
        self._changed, self._no_checkpoint = asyncio.Event(), asyncio.Event()
        self._no_checkpoint.set()
        if self._poll_interval_s is None:
            check_watching()
            loop, changed = asyncio.get_running_loop(), self._changed
            self._watch = DirectoryWatch(lambda: _call(loop, changed.set))
        with _readable():
            await asyncio.to_thread(self._begin, positions)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next records; wait while there are none.

        Raises:
            SourceUnavailable: A file cannot be read.
            SourceError: The directories cannot be watched.
        """
        while not self._ready:
            reading = await self._read_next()
            if reading.file is not None and not reading.file.label:
                await self._no_checkpoint.wait()
            self._reading = None
            self._take(reading)
            if not reading.records:
                await self._wait()
        if records_max >= len(self._ready):
            result = list(self._ready)
            self._ready.clear()
            return result
        return [self._ready.popleft() for _ in range(records_max)]

    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Return the positions of the files that are there, and what they begin with."""
        self._no_checkpoint.clear()
        return self._kept.keep(positions)

    async def release(self, positions: Mapping[str, int]) -> None:  # noqa: ARG002 (files stay where they are)
        """Let files be begun again."""
        self._no_checkpoint.set()

    async def close(self) -> None:
        """Close the files and the watch; waits for a block that is being read."""
        reading, self._reading = self._reading, None
        if reading is not None:
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()  # looked at: nobody is told of it any more
        self._ready.clear()
        if self._watch is not None:
            watch, self._watch = self._watch, None
            await asyncio.to_thread(watch.close)
        if self._files is not None:
            self._files.close()
            self._files = None

    # -- in a thread
    def _begin(self, positions: Mapping[str, int]) -> None:
        places = self._places = Places(self._patterns)
        lost = self._kept.restore(positions)
        by_path = {found.path: found for found in places.find().values()}
        for path, position in positions.items():
            found = by_path.get(path)
            if found is not None and position and not is_of_follow(path):
                lost += self._taken_over(found, position)
        self._files = FollowedFiles(places, self._new_splitter, lost, self._rotate_wait_s, time.monotonic)
        self._look()

    def _taken_over(self, found: Found, position: int) -> list[LostFile]:
        """Return the file of a position that was kept by its path, if it is still the one that was read."""
        file = FollowedFile(found, 0, self._new_splitter, 0.0)
        try:
            head = file.look_into()
            if file.digest is None or found.status.st_size < position:
                return []
            known = LostFile("", file.key[1], file.digest, position, evidence(head, position), head, found.path)
            if not known.is_content_of(file, Match.IN_PLACE):
                return []
            known.label = self._kept.begin(known.inode, known.digest, head, position)
            return [known]
        finally:
            file.close()

    def _look(self) -> None:
        assert self._files is not None, "opened"
        assert self._places is not None, "opened"
        began_s = time.monotonic()
        self._sweep_s = _SWEEP_S if self._poll_interval_s is None else self._poll_interval_s
        if self._watch is not None:
            roots = self._places.roots()
            if self._watch.watch(roots):
                self._sweep_s = _WATCH_BEGINS_S
            if any(root.key is None for root in roots):
                self._sweep_s = min(self._sweep_s, _NO_DIRECTORY_SWEEP_S)
        self._files.look()
        now_s = time.monotonic()
        self._next_look_s = now_s + (now_s - began_s) * _LOOK_COST

    def _read_on(self) -> Reading:
        assert self._files is not None, "opened"
        reading = self._files.read_found()
        if reading is None:
            self._look()
            reading = self._files.read_found()
        return reading or self._files.nothing_read()

    # -- on the loop
    async def _read_next(self) -> Reading:
        assert self._files is not None, "opened"
        if self._reading is None:
            if not self._files.has_found:
                await asyncio.sleep(max(0.0, self._next_look_s - time.monotonic()))
                self._changed.clear()
            self._reading = asyncio.create_task(asyncio.to_thread(self._read_on))
        with _readable():
            try:
                return await asyncio.shield(self._reading)
            except (OSError, AgentflowError):
                self._reading = None
                raise

    def _take(self, reading: Reading) -> None:
        for label, end in reading.gone.items():
            self._kept.forget(label, end)
        file, records = reading.file, reading.records
        if file is not None and file.label:
            self._kept.see(file.label, file.head)
        elif file is not None:
            assert file.digest is not None, "a file with a record has a first line"
            file.give_label(self._kept.begin(file.key[1], file.digest, file.head))
            for record in records:
                record.source = file.label
            logger.debug("%s is followed as %s", file.path, file.label)
        self._ready.extend(records)

    async def _wait(self) -> None:
        """Wait until something changed, or it is time to look anyway."""
        assert self._files is not None, "opened"
        if self._files.is_waiting_for_files and not self._is_wait_told:
            self._is_wait_told = True
            logger.info("there is no file yet: %s", self._places)
        due_s, timeout_s = self._files.next_due_s, self._sweep_s
        if due_s is not None:
            timeout_s = min(timeout_s, max(0.0, due_s - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(callback)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Say what an error of the file system means for the job."""
    try:
        yield
    except OSError as error:
        raise SourceUnavailable(
            f"a followed file cannot be read: {error.strerror or error}",
            where={"file": error.filename} if error.filename else {},
            expected="files that can be read again, where they were",
            fix="Check the disk or the network drive.",
        ) from error
