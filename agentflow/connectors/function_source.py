"""Async generators as a source: the shortest connector of one's own.

    async def orders(position):                       # None: from the beginning
        async for row in rows_after(position):
            yield row, row["id"]                      # a value, and the position behind it

A function with a parameter ``position`` is replayable: called with a position that it gave, it yields what it yielded behind it, in the
same order. Positions are anything that JSON can carry. A value without one is fine too (a page of results has one cursor): what was read
behind the last position is read again, counted, and left out.

A checkpoint holds two entries, for a source that is called ``orders``:

    orders                 how many values were applied; with that number a run is named, ``orders/17``
    orders@"2026-11-26"    the last position at or before it, as JSON, and how many values there were up to it
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from types import AsyncGeneratorType
from typing import Any

import msgspec

from agentflow.api.codecs import MSGPACK
from agentflow.api.encoding import encode_msgpack
from agentflow.core.records import Record
from agentflow.errors import AgentflowError, SourceError, SourceUnavailable

_AHEAD_MAX = 256  # values that are read before they are asked for
_MARKS_MAX = 4096
_POSITION_BYTES_MAX = 4096
_CLOSE_S = 10.0

logger = logging.getLogger("agentflow.connectors.functions")

SourceFunction = Callable[..., Any]
"""Returns an async iterable, or an awaitable of one."""


def reference(function: object) -> str:
    """Return how a function is written in a job file: ``module:name``."""
    while isinstance(function, functools.partial):
        function = function.func
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)  # a generator object has none
    return f"{module}:{named.__qualname__}" if module else str(named.__qualname__)


def takes_position(function: Callable[..., Any]) -> bool:
    """Whether a source function can go on at a position: it has a parameter of that name."""
    try:
        return "position" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C: it has no signature
        return False


def check_source_function(function: object, options: Mapping[str, Any]) -> None:
    """Refuse what cannot be called to get a source.

    Raises:
        TypeError: It is no function, or takes other arguments.
    """
    if not callable(function):
        raise TypeError(
            f"a source is an async iterable or a function that returns one, not a {type(function).__name__}; "
            "a list is read with from_list"
        )
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"source function {reference(function)} is a plain generator: write it with 'async def'")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: it has no signature
        return
    position = {"position": None} if takes_position(function) else {}
    try:
        signature.bind(**position, **options)
    except TypeError as error:
        raise TypeError(
            f"source function {reference(function)}{signature} cannot be called with "
            f"{', '.join(['position', *options]) if position else ', '.join(options) or 'nothing'}: {error}"
        ) from None


class FunctionSource:
    """Values that an async iterable, or a function that returns one, yields.

    Args:
        values: An async iterable, which cannot be read twice; or a function of nothing, which is called again after a failure and cannot
            say what it gave before; or a function with a parameter ``position`` (see the module's docstring).
        options: Further arguments of the function, by name.
        name: Name of the source in positions, run ids and messages. A job that has it goes on under no other.

    Raises:
        TypeError: It is neither.
    """

    codec = MSGPACK
    partitions = ()
    idle_timeout_ms = None

    def __init__(
        self,
        values: AsyncIterable[Any] | SourceFunction,
        *,
        options: Mapping[str, Any] | None = None,
        name: str = "python",
    ) -> None:
        self.name = name
        self._reference = reference(values)
        self._iterable: AsyncIterable[Any] | None = None
        self._call: SourceFunction | None = None
        self.is_replayable = False
        if isinstance(values, AsyncIterable):
            self._iterable = values
        else:
            check_source_function(values, options or {})
            self._call = functools.partial(values, **(options or {}))
            self.is_replayable = takes_position(values)
        self._is_used_up = False
        self._ready: deque[Record] = deque()
        self._count = 0  # of values that were yielded, since the beginning of the job
        self._applied = 0
        self._position: object = None
        self._marks: deque[tuple[int, str]] = (
            deque()
        )  # (count, position) of what a checkpoint may still need, oldest first
        self._pump: asyncio.Task[None] | None = None
        self._failure: AgentflowError | None = None
        self._has_ended = False
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()

    async def open(self, positions: Mapping[str, int]) -> None:
        """Begin behind what a checkpoint has; a source that is not replayable goes on counting.

        Raises:
            SourceError: It is an iterable that was read before.
        """
        await self.close()
        self._ready.clear()
        self._marks.clear()
        self._failure, self._has_ended = None, False
        self._changed, self._has_room = asyncio.Event(), asyncio.Event()
        applied = self._applied = positions.get(self.name, 0)
        mark = next(((name, count) for name, count in positions.items() if name.startswith(f"{self.name}@")), None)
        self._position, self._count = None, applied
        if self.is_replayable:
            self._count = 0
            if mark is not None:
                text, self._count = mark[0].removeprefix(f"{self.name}@"), mark[1]
                self._position = msgspec.json.decode(text)
                self._marks.append((self._count, text))
        if self._is_used_up:
            raise SourceError(
                "the input cannot be iterated a second time",
                where={"source": self.name, "iterable": self._reference},
                expected="a function that returns a new iterator at each start of the job",
                fix="give the function itself instead of what it returned",
            )
        self._pump = asyncio.create_task(self._read())

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next values; wait while there are none; empty when the function has ended.

        Raises:
            SourceUnavailable: The function raised an error; it is called again when the job restarts.
            SourceError: It is no such function, or what it yields cannot be a record; or it raised one.
        """
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if self._has_ended:
                return []
            self._changed.clear()
            await self._changed.wait()
        records = [self._ready.popleft() for _ in range(min(records_max, len(self._ready)))]
        self._has_room.set()
        return records

    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Return how many values were applied, and the last position before that."""
        if not self.is_replayable:
            return positions
        applied = self._applied = positions.get(self.name, self._applied)
        while len(self._marks) > 1 and self._marks[1][0] <= applied:
            self._marks.popleft()
        kept = {name: offset for name, offset in positions.items() if not name.startswith(f"{self.name}@")}
        if self._marks and self._marks[0][0] <= applied:
            count, text = self._marks[0]
            kept[f"{self.name}@{text}"] = count
        return kept

    async def release(self, positions: Mapping[str, int]) -> None:
        """Go on: the function is not told."""

    async def close(self) -> None:
        """Cancel the function and wait for it to end; ten seconds at most."""
        pump, self._pump = self._pump, None
        if pump is None:
            return
        pump.cancel()
        await asyncio.wait([pump], timeout=_CLOSE_S)
        if not pump.done():
            logger.warning("source function %s does not end although it was cancelled", self._reference)

    async def _read(self) -> None:
        try:
            iterator = await self._iterator()
            try:
                async for value in iterator:
                    self._take(value)
                    if len(self._ready) >= _AHEAD_MAX:
                        self._has_room.clear()
                        await self._has_room.wait()
                    elif self._count % _AHEAD_MAX == 0:
                        await asyncio.sleep(0)  # a function that never waits, and whose values are left out
            finally:
                if isinstance(iterator, AsyncGeneratorType):
                    await iterator.aclose()
            self._has_ended = True
        except AgentflowError as error:
            self._failure = error
        except asyncio.CancelledError as error:
            self._failure = self._failed(error)  # by `close`, and nobody asks; or by itself, which is no end of input
            raise
        except Exception as error:  # noqa: BLE001 (the edge to the user's code)
            self._failure = self._failed(error)
        finally:
            self._changed.set()

    async def _iterator(self) -> AsyncIterator[Any]:
        if self._iterable is not None:
            iterator = aiter(self._iterable)
            self._is_used_up = iterator is self._iterable
            return iterator
        assert self._call is not None, "an iterable or a function"
        made = self._call(position=self._position) if self.is_replayable else self._call()
        if inspect.isawaitable(made):
            made = await made
        if not isinstance(made, AsyncIterable):
            raise SourceError(
                f"the source function returned a {type(made).__name__}",
                where={"function": self._reference},
                expected="an async iterator: a function with 'async def' and 'yield'",
                fix="yield the values one by one",
            )
        return aiter(made)

    def _take(self, value: Any) -> None:  # noqa: ANN401 (any value)
        position = None
        if self.is_replayable and type(value) is tuple and len(value) == 2:
            value, position = value
        number = self._count
        self._count += 1
        if number >= self._applied:  # else it was applied, behind a position that did not name it
            self._ready.append(Record(self.name, number, number + 1, self._encoded(value, number)))
            if not self._changed.is_set():
                self._changed.set()
        if position is not None:
            self._mark(position)

    def _encoded(self, value: Any, number: int) -> bytes:  # noqa: ANN401 (any value)
        try:
            return encode_msgpack(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SourceError(
                f"the source function yielded a {type(value).__name__} that cannot be a record: {error}",
                where={"function": self._reference, "value": number, "behind position": repr(self._position)},
                expected="what JSON or msgpack can carry: None, bool, int, float, str, bytes, list, dict, msgspec structs",
                fix="convert it before it is yielded",
            ) from error

    def _mark(self, position: object) -> None:
        if position == self._position:
            raise self._bad_position(
                position, "the position does not move: behind it the next value would not be found"
            )
        try:
            text = msgspec.json.encode(position).decode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise self._bad_position(position, f"the position cannot be kept: {error}") from error
        if len(text) > _POSITION_BYTES_MAX:
            raise self._bad_position(
                position, f"the position has {len(text):,} bytes, more than {_POSITION_BYTES_MAX:,}"
            )
        self._position = position
        self._marks.append((self._count, text))
        if (
            len(self._marks) > _MARKS_MAX
        ):  # any earlier one will do, with more values to leave out; the newest are kept whole
            half = len(self._marks) // 2
            marks = list(self._marks)
            self._marks = deque([marks[0], *marks[1:half:2], *marks[half:]])

    def _bad_position(self, position: object, what: str) -> SourceError:
        return SourceError(
            what,
            where={"function": self._reference, "value": self._count - 1, "position": repr(position)[:200]},
            expected="yield value, position: the position is where to go on behind the value, as JSON",
            fix="yield the value alone where no position lies behind it",
        )

    def _failed(self, error: BaseException) -> SourceError:
        kind = SourceError if self._iterable is not None else SourceUnavailable
        failure = kind(
            f"the source function raised {type(error).__name__}: {error}",
            where={"function": self._reference, "values": self._count, "behind position": repr(self._position)},
            expected="values, or the end of input",
            fix="correct the function; raise SourceError for what a restart cannot cure",
        )
        failure.__cause__ = error
        return failure
