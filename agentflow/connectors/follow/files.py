"""The files that are followed: which there are, which of them is what, and what is read next.

A *look* finds what is there and compares it with what is known. Of a file that was not there before it is asked, in this order:

1. Is it a known file in its own place, of which a checkpoint has a position?        it goes on there
2. Is it what a file was that is not in its place any more: moved, or copied and
   truncated?                                                                       it goes on under that file's label
3. Is it, so far, a copy of a file that is in its place?                            it waits: that file may be truncated in a
                                                                                    moment; a copy that stays as it is becomes a
                                                                                    file of its own
4. Else it is a new file and is read from its beginning.

A known file that is shorter than what was read of it, or begins otherwise, was truncated: what is there now is a new file in the
same place, and the old label is looked for elsewhere, also beside what the patterns find. After two looks in vain it is gone.

Files with something new are then read one after the other, the one that was changed first first; of those that were changed at the
same time (clocks of file systems tick every few milliseconds) known ones before new ones, then by path, higher numbers of rotation
first. Each is read up to the size that it had in the look, so that none waits for the end of another one that grows.

All methods are called in one thread at a time, which may be another one each time.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import msgspec

from agentflow.connectors.follow.copies import Originals
from agentflow.connectors.follow.file import FileChanged, FollowedFile, NewSplitter
from agentflow.connectors.follow.lost import LostFile, LostSearch, Match
from agentflow.connectors.follow.places import FileKey, Found, Places, rotation_order
from agentflow.core.records import Record

_OPEN_MAX = 128  # of the 1,024 descriptors that a process has by default
_LOOKS_MAX = 2  # a rename may fall between reading the directory and looking at the file
_TAIL_BYTES = 1024
_T = TypeVar("_T")

logger = logging.getLogger("agentflow.connectors.follow")


class Reading(msgspec.Struct):
    """What came of reading on.

    Attributes:
        records: Records of one file; empty: there is nothing new.
        file: The file. Where it has no label yet, the records have none either.
        gone: Labels of files that will never be read again → position behind their last record.
    """

    records: list[Record]
    file: FollowedFile | None
    gone: dict[str, int]


class FollowedFiles:
    """Finds files, reads them on, and loses none of them through rotation.

    Args:
        places: Where they are.
        new_splitter: Makes what splits a file into records.
        lost: Files of which a checkpoint has a position.
        rotate_wait_s: How long a file that no path or pattern finds any more is read on, and how long a file that is a copy of
            another one waits.
        now_s: A clock that only goes forward.
    """

    def __init__(
        self,
        places: Places,
        new_splitter: NewSplitter,
        lost: Iterable[LostFile],
        rotate_wait_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self._places = places
        self._new_splitter = new_splitter
        self._rotate_wait_s = rotate_wait_s
        self._now_s = now_s
        self._files: dict[FileKey, FollowedFile] = {}
        self._undecided: dict[FileKey, FollowedFile] = {}  # without a whole first line, or perhaps a copy
        self._lost = list(lost)
        self._truncated: dict[FileKey, int] = {}  # what was read of a file before it was truncated, until it is told
        self._turns: deque[tuple[FollowedFile, int]] = deque()
        self._open: OrderedDict[FileKey, FollowedFile] = OrderedDict()  # the one used last is last
        self._gone: dict[str, int] = {}
        self._refused: set[str] = set()

    @property
    def is_waiting_for_files(self) -> bool:
        """Whether nothing was found yet."""
        return not self._files and not self._undecided

    @property
    def next_due_s(self) -> float | None:
        """When to look again although nothing may have changed; None: then only."""
        if self._lost:
            return self._now_s()
        waiting = [file.quiet_since_s for file in self._files.values() if not file.is_matched]
        waiting += [file.quiet_since_s for file in self._undecided.values() if file.digest is not None]
        return min(waiting) + self._rotate_wait_s if waiting else None

    @property
    def has_found(self) -> bool:
        """Whether there is something to read."""
        return bool(self._turns)

    def read_found(self) -> Reading | None:
        """Read the next block that completes a record; None: what the last look found is read.

        Raises:
            OSError: A file cannot be read, for another reason than that it went or may not be.
        """
        while self._turns:
            file, until = self._turns[0]
            records = self._read(file, until)
            if file.seen_to >= until or not file.is_open:
                self._turns.popleft()
            if records:
                return Reading(records, file, self._take_gone())
        return None

    def nothing_read(self) -> Reading:
        """Return what is to be told when nothing was read."""
        return Reading([], None, self._take_gone())

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _take_gone(self) -> dict[str, int]:
        gone, self._gone = self._gone, {}
        return gone

    # -- looking
    def look(self) -> None:
        """See what is there, and who has a turn."""
        now_s = self._now_s()
        found = self._places.find()
        new = [file for key, file in found.items() if not self._is_still_there(key, file, now_s)]
        for file in [file for key, file in self._files.items() if key not in found]:
            self._look_after(file, now_s)
        for key in [key for key in self._undecided if key not in found]:
            self._close(self._undecided.pop(key))
        self._forget_gone_places(found)
        if new or self._lost:
            self._take_in(new, now_s)
        files = [file for file in self._files.values() if not file.is_read]
        files.sort(key=lambda file: (file.status.st_mtime_ns, not file.label, rotation_order(file.path)))
        self._turns = deque((file, file.size) for file in files)

    def _forget_gone_places(self, found: dict[FileKey, Found]) -> None:
        """Keep no note of what is not there any more."""
        for key in [key for key in self._truncated if key not in found]:
            del self._truncated[key]
        if self._refused:
            self._refused &= {file.path for file in found.values()}

    def _is_still_there(self, key: FileKey, found: Found, now_s: float) -> bool:
        """See a known file again; False: what is in that place is not known."""
        file = self._files.get(key)
        if file is None:
            return False
        if self._tried(file, partial(file.see, found, now_s)) is False:
            self._truncated[key] = file.seen_to
            self._lose(file)
            return False
        self._keep_open(file)
        return True

    def _look_after(self, file: FollowedFile, now_s: float) -> None:
        """See a file that nothing finds any more: it was moved or deleted."""
        if not file.is_open or not file.see_open(now_s):
            self._lose(file)
        elif file.is_read:
            is_deleted = file.status.st_nlink == 0
            if is_deleted or now_s - file.quiet_since_s >= self._rotate_wait_s:
                self._forget(file)

    def _take_in(self, new: list[Found], now_s: float) -> None:
        """Find out what files are that were not there before; see the module's docstring."""
        candidates = [file for found in new if (file := self._candidate(found, now_s)) is not None]
        if self._lost:
            candidates = self._find_lost(candidates, now_s)
        originals = Originals(self._files.values() if candidates else ())
        for file in candidates:
            is_quiet = now_s - file.quiet_since_s >= self._rotate_wait_s
            is_whole = file.digest is not None
            if not is_whole or (not is_quiet and any(self._is_copy(file, of) for of in originals.of(file))):  # 3
                self._undecided[file.key] = file
            else:  # 4
                self._files[file.key] = file
                originals.add(file)
                read = self._truncated.pop(file.key, 0)
                if read:
                    logger.info("%s was truncated, %d bytes of it had been read: it starts again at 0", file.path, read)
            self._keep_open(file)

    def _candidate(self, found: Found, now_s: float) -> FollowedFile | None:
        """Return a file that is to be taken in, with its beginning known; None: it cannot be read now."""
        known = self._undecided.pop(found.key, None)
        if known is not None and self._tried(known, partial(known.see, found, now_s)):
            file = known
        else:
            file = FollowedFile(found, 0, self._new_splitter, now_s)
            if known is not None:
                self._close(known)
        return file if self._is_known(file) else None

    def _is_known(self, file: FollowedFile) -> bool:
        """Whether the beginning of a file can be looked at; it stays open if there are not too many."""
        if self._tried(file, file.look_into) is None:
            self._close(file)
            return False
        self._keep_open(file)
        return True

    def _find_lost(self, candidates: list[FollowedFile], now_s: float) -> list[FollowedFile]:
        """Let lost files go on where they are found; return the candidates that are none of them."""
        search = LostSearch(self._lost, {file.key[1] for file in (*self._files.values(), *candidates)})

        def without_found(files: list[FollowedFile], match: Match) -> list[FollowedFile]:
            return [file for file in files if not self._is_found(file, match, search, now_s)]

        candidates = without_found(candidates, Match.IN_PLACE)
        candidates = without_found(candidates, Match.MOVED)
        found_beside = self._beside(now_s) if search.is_going_on else ()
        beside = [file for file in found_beside if self._is_known(file)]
        beside = without_found(beside, Match.IN_PLACE)
        beside = without_found(beside, Match.MOVED)
        candidates = without_found(candidates, Match.SHORT_COPY)
        for file in without_found(beside, Match.SHORT_COPY):
            self._close(file)
        self._lost = [one for one in self._lost if not one.is_found]
        self._give_up()
        return candidates

    def _beside(self, now_s: float) -> Iterator[FollowedFile]:
        """Return the files that no path or pattern finds, beside those that are found: rotation puts files there."""
        for found in self._places.siblings():
            if found.key not in self._files:
                yield FollowedFile(found, 0, self._new_splitter, now_s, is_matched=False)

    def _is_found(self, file: FollowedFile, match: Match, search: LostSearch, now_s: float) -> bool:
        """Whether a file is a lost one, which then goes on in it."""
        for one in search.candidates(file, match):
            if self._tried(file, partial(one.is_content_of, file, match)):
                one.is_found = True
                found, head = Found(file.path, file.status), file.head
                self._close(file)
                again = self._files[found.key] = FollowedFile(
                    found, one.position, self._new_splitter, now_s, one.label, head, is_matched=file.is_matched
                )
                if not again.is_matched:  # no path will lead to it another time
                    self._tried(again, again.open)
                    self._keep_open(again)
                return True
            self._keep_open(file)
        return False

    def _is_copy(self, file: FollowedFile, of: FollowedFile) -> bool:
        """Whether the end of a file, too, is what another one has there, that begins as it does."""
        start = max(0, file.size - _TAIL_BYTES)
        tails = [self._tried(one, partial(one.read_at, file.size - start, start)) for one in (file, of)]
        self._keep_open(of)
        return tails[0] is not None and tails[0] == tails[1]

    def _lose(self, file: FollowedFile) -> None:
        """Let a file go from its place; its label is looked for elsewhere."""
        del self._files[file.key]
        self._close(file)
        if file.label:
            self._lost.append(LostFile.of(file))

    def _forget(self, file: FollowedFile) -> None:
        """Let a file go that is read to its end."""
        del self._files[file.key]
        self._close(file)
        if file.resume < file.seen_to:
            unended = file.seen_to - file.resume
            logger.warning("%s ended without a newline: its last %d bytes are no record", file.path, unended)
        if file.label:
            self._gone[file.label] = file.end

    def _give_up(self) -> None:
        """Let labels go that were looked for often enough."""
        for one in list(self._lost):
            one.looks += 1
            if one.looks >= _LOOKS_MAX:
                self._lost.remove(one)
                self._gone[one.label] = one.position
                if one.unread_bytes:
                    logger.warning("%s is gone, and %d bytes of it were not read", one.path, one.unread_bytes)

    # -- reading
    def _read(self, file: FollowedFile, until: int) -> list[Record]:
        records = self._tried(file, partial(file.read, until)) if self._files.get(file.key) is file else None
        if records is None:  # the next look tells what became of it
            self._close(file)
            return []
        self._keep_open(file)
        return records

    def _tried(self, file: FollowedFile, call: Callable[[], _T]) -> _T | None:
        """Do something with a file; None: it went, is another one, or may not be read, which is told once."""
        try:
            done = call()
        except (FileNotFoundError, FileChanged):
            return None
        except PermissionError:
            if file.path not in self._refused:
                self._refused.add(file.path)
                logger.warning("%s may not be read; it is tried again whenever something changes", file.path)
            return None
        self._refused.discard(file.path)
        return done

    def _keep_open(self, file: FollowedFile) -> None:
        """Keep files open that were used last: what is deleted or moved can still be read then."""
        if not file.is_open:
            return
        before = self._open.get(file.key)
        if before is not None and before is not file:
            before.close()
        self._open[file.key] = file
        self._open.move_to_end(file.key)
        while len(self._open) > _OPEN_MAX:
            # Those to which a path leads first: they can be opened again.
            oldest = next((key for key, one in self._open.items() if one.is_matched), next(iter(self._open)))
            self._open.pop(oldest).close()

    def _close(self, file: FollowedFile) -> None:
        file.close()
        if self._open.get(file.key) is file:
            del self._open[file.key]
