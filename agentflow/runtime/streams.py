"""`ctx.stream`: what actions say while they work, on its way to those who wait for the run, and to an outlet.

    write ─► on the loop ─► offset ─► ring of the request (`chunks.py`) ─► readers
                                  └─► outlet (a topic)

Where nobody can read, in a job without either, a stream takes everything and keeps nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.api.chat_models import ChatDelta, DeltaKind
from agentflow.api.encoding import encode_json
from agentflow.api.streams import ChunkKind, StreamChunk
from agentflow.core.runs import ActionTask, Run
from agentflow.runtime.chunks import ChunkLog
from agentflow.runtime.step_runner import current_step

if TYPE_CHECKING:
    from agentflow.runtime.ports import StreamOutlet
    from agentflow.runtime.requests import OpenRequest, RequestTable

_TEXT, _VALUE, _RESET, _END = ChunkKind.TEXT, ChunkKind.VALUE, ChunkKind.RESET, ChunkKind.END
_KINDS = {kind: ChunkKind(kind.value) for kind in DeltaKind}
_decode = msgspec.json.Decoder().decode


class Nowhere:
    """The stream of a job in which nobody can read."""

    def write(self, piece: object) -> None:
        """Drop it."""

    def begin_attempt(self, attempt: int) -> None:
        """Nothing came of earlier ones."""

    def settle(self, step: str, *, is_final: bool) -> None:
        """Nothing came of it."""

    def close(self, *, is_final: bool) -> None:
        """Nothing came of it."""


NOWHERE = Nowhere()


class Streams:
    """Opens the streams of one subtask; made on its loop.

    Args:
        requests: Requests whose callers may read; None: there are none.
        outlet: Takes every chunk too; None: there is none.
    """

    def __init__(self, requests: RequestTable | None, outlet: StreamOutlet | None) -> None:
        self._requests = requests
        self._outlet = outlet
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._unread: weakref.WeakKeyDictionary[Run, ChunkLog] = (
            weakref.WeakKeyDictionary()
        )  # of runs without a request

    def open(self, task: ActionTask, name: str) -> LiveStream:
        """Return a stream of an attempt of a task; from any thread."""
        return LiveStream(self, task, name)

    def log_of(self, run: Run) -> tuple[ChunkLog, OpenRequest | None]:
        """Return the log of a run, and the request that it answers; None: nobody can ask for it."""
        requests = self._requests
        request = None if requests is None or run.request is None else requests.of(run.record)
        if requests is not None and request is not None and (log := requests.chunks_of(request)) is not None:
            return log, request
        found = self._unread.get(run)
        if found is None:
            # Perhaps the run has spoken in another process, of which nothing is known here.
            found = self._unread[run] = ChunkLog(0, None, is_fresh=False)
        return found, None

    def on_loop(self, call: Callable[..., None], *args: object) -> None:
        """Call on the loop: at once, or as soon as it can where this is another thread."""
        if threading.get_ident() == self._thread:
            call(*args)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(call, *args)

    def hand_out(self, run: Run, chunk: StreamChunk) -> None:
        """Give a chunk to the outlet."""
        if self._outlet is not None:
            self._outlet.write(run.state.key, chunk)


class LiveStream:
    """A stream of one attempt of a task; see `agentflow.api.streams.Stream`.

    Its steps begin and end by themselves: a call that fails takes back what it has said, a durable outcome confirms it.
    """

    def __init__(self, streams: Streams, task: ActionTask, name: str) -> None:
        self._streams = streams
        self._name = name
        self._run: Run = task.run
        self._run_id = task.run.id
        self._path = task.path
        self._attempts = {"": task.attempt}  # step → number of its call, where it is not final
        self._begun: set[str] = set()
        self._is_open = True
        self._log: ChunkLog | None = None
        self._request: OpenRequest | None = None

    def write(self, piece: Any) -> None:  # noqa: ANN401 (whatever JSON can carry)
        """See `Stream.write`."""
        if not self._is_open:
            return
        if type(piece) is ChatDelta:
            said = (_KINDS[piece.kind], _text(piece.text), None, piece.index, piece.name)
        elif isinstance(piece, str):
            said = (_TEXT, _text(piece), None, 0, "")
        else:
            said = (_VALUE, "", _decode(encode_json(piece)), 0, "")
        self._streams.on_loop(self._say, current_step(), said)

    def begin_attempt(self, attempt: int) -> None:
        """See `Stream.begin_attempt`."""
        if self._is_open:
            self._streams.on_loop(self._begin, current_step(), attempt)

    # -- the engine's side
    def settle(self, step: str, *, is_final: bool) -> None:
        """Confirm what a step has said: its outcome is durable; or take it back: its call has failed."""
        self._streams.on_loop(self._settle, step, is_final)

    def close(self, *, is_final: bool) -> None:
        """End with the attempt; one that failed takes back what is not final. What the action itself has said its outputs confirm."""
        self._is_open = False
        if not is_final:
            self._streams.on_loop(self._take_back)

    # -- on the loop
    def _say(self, step: str, said: tuple[ChunkKind, str, Any, int, str]) -> None:
        if step not in self._begun:
            self._begin(step, self._attempts.get(step, 1))
        assert self._log is not None, "it has begun"
        self._log.say(self._name, self._path + step)
        self._add(step, *said)

    def _begin(self, step: str, attempt: int) -> None:
        if self._log is None:
            self._log, self._request = self._streams.log_of(self._run)
        self._begun.add(step)
        self._attempts[step] = attempt
        place = self._name, self._path + step
        if self._log.is_void(*place):
            self._log.settle(*place)
            self._add(step, _RESET)

    def _settle(self, step: str, is_final: bool) -> None:  # noqa: FBT001 (a callback)
        if step not in self._begun:
            return
        assert self._log is not None, "it has begun"
        if self._log.settle(self._name, self._path + step):
            self._add(step, _END if is_final else _RESET)
        self._begun.discard(step)
        self._attempts[step] += 1

    def _take_back(self) -> None:
        for step in sorted(self._begun):
            self._settle(step, is_final=False)

    def _add(
        self, step: str, kind: ChunkKind, text: str = "", value: object = None, index: int = 0, name: str = ""
    ) -> None:
        log, request = self._log, self._request
        assert log is not None, "it has begun"
        chunk = StreamChunk(
            stream=self._name,
            run=self._run_id,
            step=self._path + step,
            attempt=self._attempts[step],
            offset=log.last + 1,
            kind=kind,
            text=text,
            value=value,
            index=index,
            name=name,
        )
        log.add(chunk, 0 if request is None else len(request.outputs))
        if request is not None:
            request.wake()
        self._streams.hand_out(self._run, chunk)


def _text(text: str) -> str:
    """Return a text that can be encoded: the cut answer of a model may hold half a character."""
    return text if text.isascii() else text.encode(errors="replace").decode()
