"""Finding records in files of the event log, without reading what is not wanted: bytes are searched, and lines that match decoded."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentflow.errors import ConfigError

Record = dict[str, Any]
_RUN = b'"inputRunId":"%b'
_KEY = b'"businessKey":%b,'


class LogSearch:
    """Searches files in their order.

    Attributes:
        torn: Lines that matched and could not be decoded: a killed process has not written them whole.

    Args:
        files: The files, in the order of their records.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.torn = 0
        self._files = files

    def run(self, run_id: str) -> list[Record]:
        """Return the records of a run, and of what follows from it in agents downstream and by timers; each once, in order.

        Of runs of this id in several incarnations of the job's state, the last one.

        Raises:
            ConfigError: A file cannot be read.
        """
        runs = self.runs(run_id)
        return runs[-1] if runs else []

    def runs(self, run_id: str) -> list[list[Record]]:
        """Return the records of the runs of this id, one for each incarnation of the job's state, the last one last.

        Raises:
            ConfigError: A file cannot be read.
        """
        needle = _RUN % msgspec.json.encode(run_id)[1:-1]
        below = f"{run_id}/"
        by_incarnation: dict[object, list[Record]] = {}
        for record in self._distinct(needle, lambda record: f"{record.get('inputRunId')}/".startswith(below)):
            by_incarnation.setdefault(record.get("incarnation"), []).append(record)
        return list(by_incarnation.values())

    def key(self, key: object) -> list[Record]:
        """Return the records of a key, each once, in order; ``key`` keeps its type.

        Raises:
            ConfigError: A file cannot be read.
        """
        encoded = msgspec.json.encode(key)
        return self._distinct(_KEY % encoded, lambda record: msgspec.json.encode(record.get("businessKey")) == encoded)

    def _distinct(self, needle: bytes, is_wanted: Callable[[Record], bool]) -> list[Record]:
        """Return the records that are wanted; of those that were written again after a recovery the first one."""
        found: dict[tuple[object, str], Record] = {}
        for line in self._lines(needle):
            try:
                record = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.torn += 1
                continue
            if isinstance(record, dict) and isinstance(record.get("eventId"), str) and is_wanted(record):
                found.setdefault((record.get("incarnation"), record["eventId"]), record)
        return list(found.values())

    def _lines(self, needle: bytes) -> Iterator[bytes]:
        """Yield the lines that contain ``needle``."""
        for path in self._files:
            try:
                with path.open("rb") as file:
                    if file.seek(0, 2):
                        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                            yield from _matching_lines(text, needle)
            except (OSError, ValueError) as error:
                raise ConfigError([f"{path}: the file cannot be read: {error}"]) from error


def _matching_lines(text: mmap.mmap, needle: bytes) -> Iterator[bytes]:
    at = text.find(needle)
    while at >= 0:
        begin = text.rfind(b"\n", 0, at) + 1
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        yield text[begin:end]
        at = text.find(needle, end)


class RunSummary(msgspec.Struct, rename="camel"):
    """A run of a key, in short.

    Attributes:
        run: Its id.
        incarnation: Of the job's state, in short; empty: it is not known.
        agent: Name of the agent.
        began: Time of its first record.
        ended: Time of its last one.
        records: How many there are.
        problems: Those of them that tell of a failure.
    """

    run: str
    incarnation: str
    agent: str
    began: str
    ended: str
    records: int
    problems: int


def runs_of(records: Iterable[Record]) -> list[RunSummary]:
    """Return the runs that records are of, in the order in which they began."""
    runs: dict[tuple[str, str], RunSummary] = {}
    for record in records:
        run_id, at = str(record.get("inputRunId")), str(record.get("timestamp"))
        incarnation = str(record.get("incarnation", ""))
        summary = runs.get((incarnation, run_id))
        if summary is None:
            summary = runs[incarnation, run_id] = RunSummary(
                run_id, incarnation, str(record.get("agentName", "")), at, at, 0, 0
            )
        summary.began, summary.ended = min(summary.began, at), max(summary.ended, at)
        summary.records += 1
        summary.problems += bool(record.get("problemCategory"))
    return sorted(runs.values(), key=lambda run: run.began)
