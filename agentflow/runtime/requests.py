"""Open requests: who submitted an input to a running job, and what has been answered so far.

The table stands between callers, who come and go, and the subtask, which may restart under them. A caller that is cancelled takes
nothing with it: the run goes on, and whoever asks for the same request joins it.

    submit ─► queue ─► admitted (a turn of the subtask) ─► acknowledged ─► outputs … ─► over
                          ▲                                                   │
                          └── again, under a new run id, where a restart of the subtask finds that it was never durable
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

import msgspec

from agentflow.core.effects import AcknowledgeRequest, AnswerRequest
from agentflow.core.records import ErrorReport, Headers, Record
from agentflow.core.results import decode_result, fingerprint, life_of, request_id_of, request_source, result_name
from agentflow.errors import EngineClosed, EngineOverloaded, RequestError, RequestLost, RequestMismatch, RunFailed
from agentflow.runtime.chunks import ChunkBuffers, ChunkLog

_RequestId = tuple[int, str]  # (place of the agent, request id)


class OpenRequest(
    msgspec.Struct, eq=False, gc=False
):  # whoever it refers to while it waits, it does not when it is over
    """A request that is not answered, or was answered a moment ago.

    Attributes:
        agent: Place of the agent.
        record: The input; its source and offset name the run.
        key: Canonical encoding of the key.
        request_id: What the caller calls it; None: nothing.
        fingerprint: Of key and input, where the run was restored and they are not here.
        is_kept: Its answer is kept.
        wants_receipt: Somebody waits until the input is durable.
        epoch: Number of the checkpoint that has its admission; 0: it is in the queue.
        is_durable: The input is durable, as far as anybody has asked.
        outputs: Encoded outputs so far; None: one without a value.
        is_over: The run is over.
        error: Why it ended early; None: it did not.
        is_refused: There was no run.
        lost: Why there will be no answer; None: there will.
        chunks: What its actions have said so far (`ctx.stream`); None: nothing, and nobody has asked.
    """

    agent: int
    record: Record
    key: bytes
    request_id: str | None = None
    fingerprint: bytes = b""
    is_kept: bool = False
    wants_receipt: bool = False
    epoch: int = 0
    is_durable: bool = False
    outputs: Sequence[bytes | None] = ()
    is_over: bool = False
    error: ErrorReport | None = None
    is_refused: bool = False
    lost: Exception | None = None
    chunks: ChunkLog | None = None
    _end: asyncio.Future[None] | None = None  # of the first caller; nearly always there is one
    _others: list[asyncio.Future[None]] | None = None
    _watchers: list[asyncio.Future[None]] | None = None

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.record.run_id

    @property
    def print(self) -> bytes:
        """What tells it from another request with the same id."""
        return self.fingerprint or fingerprint(self.key, self.record.value)

    async def end(self) -> None:
        """Wait until the run is over.

        Raises:
            EngineClosed, RequestLost: There will be no answer.
        """
        while not self.is_over:
            if self.lost is not None:
                raise _fresh(self.lost)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._end is None:
                self._end = future
            elif self._others is None:
                self._others = [future]
            else:
                self._others.append(future)
            await future

    async def news(self) -> None:
        """Wait until there is something new: durable, outputs, the end.

        Raises:
            EngineClosed, RequestLost: There will be no answer.
        """
        if self.lost is None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers = [*(self._watchers or ()), future]
            await future
        if self.lost is not None:
            raise _fresh(self.lost)

    async def accepted(self) -> None:
        """Wait until the input is durable, if whoever submitted it has asked to be told.

        Raises:
            EngineOverloaded: It was refused: as many inputs wait behind its key as may.
            EngineClosed: Nobody knows.
        """
        while not self.is_durable:
            await self.news()
        if self.is_refused:
            assert self.error is not None
            raise refusal(self.run_id, self.error)

    def wake(self) -> None:
        """Wake those who wait for news; at the end, or when there will be none, everybody."""
        if self._watchers is not None:
            watchers, self._watchers = self._watchers, None
            _release(watchers)
        if self.is_over or self.lost is not None:
            end, self._end = self._end, None
            if end is not None and not end.done():  # its caller may have been cancelled
                end.set_result(None)
            if self._others is not None:
                others, self._others = self._others, None
                _release(others)


def _fresh(error: Exception) -> Exception:
    """Return an error that is raised again and again without the frames of those who got it before."""
    return error.with_traceback(None)


def _release(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _release_chunks(request: OpenRequest) -> None:
    if request.chunks is not None:
        request.chunks.release()


class RequestTable:
    """The requests of one job. All of it happens on the loop.

    Args:
        queue_max: Requests that may wait for their admission.
        buffers: Limits of the chunks that are kept for callers; None: callers do not read streams.

    Attributes:
        answered: Requests whose run came to its end.
        failed: Requests whose run ended early.
        attached: Whether there is a subtask: what it has restored, and which results are kept, is known then.
    """

    def __init__(self, queue_max: int, buffers: ChunkBuffers | None = None) -> None:
        self.answered = self.failed = 0
        self.attached = asyncio.Event()
        self._queue_max = queue_max
        self._buffers = buffers
        self._queue: deque[OpenRequest] = deque()
        self._by_number: dict[int, OpenRequest] = {}  # those of this life
        self._restored: dict[str, OpenRequest] = {}  # those of former ones, by run id
        self._by_id: dict[_RequestId, OpenRequest] = {}
        self._kept: list[OpenRequest] = []  # answered, and in no checkpoint yet
        self._kept_before: list[OpenRequest] = []  # the same, of the epoch that is being written
        self._blocked: dict[asyncio.Future[None], None] = {}  # in the order in which they came
        self._reserved = 0  # places in the queue of callers that have been woken
        self._counted = self._counted_before = self._told_again = 0  # answers that a checkpoint has; that come again
        self._paused: set[int] = set()
        self._life = self._number = 0
        self._schedule: Callable[[], object] | None = None
        self._closed: Exception | None = None

    # -- callers
    @property
    def open_count(self) -> int:
        """Requests that are not answered."""
        return len(self._by_number) + len(self._restored) - len(self._kept) - len(self._kept_before)

    @property
    def blocked_count(self) -> int:
        """Callers that wait for room."""
        return len(self._blocked)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is admitted any more."""
        return self._closed is not None

    @property
    def is_full(self) -> bool:
        """Whether a limit is reached: that of the queue, or one at which an operator pauses its source."""
        return bool(self._paused) or len(self._queue) + self._reserved >= self._queue_max

    @contextlib.asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Wait until a request may be submitted, first come, first served; `submit` inside of it, without another wait.

        Raises:
            EngineClosed: Nothing is admitted any more.
        """
        if self._closed is not None:
            raise _fresh(self._closed)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._blocked[future] = None
        self._admit_blocked()
        try:
            await future
        except asyncio.CancelledError:
            self._blocked.pop(future, None)
            if future.done() and not future.cancelled():
                self._reserved -= 1
                self._admit_blocked()
            raise
        self._reserved -= 1
        try:
            yield
        finally:
            self._admit_blocked()

    def submit(
        self,
        agent: int,
        key: bytes,
        value: bytes,
        request_id: str | None = None,
        *,
        is_kept: bool = False,
        wants_receipt: bool = False,
        has_room: bool = False,
        headers: Headers = (),
    ) -> OpenRequest:
        """Put a request into the queue, or join the one that has its id.

        Args:
            agent: Place of the agent.
            key: Canonical encoding of the key.
            value: Encoded input.
            request_id: Id of the request; None: it is a new one.
            is_kept: Keep its answer; one with an id always is.
            wants_receipt: Tell when its input is durable.
            has_room: The caller has waited for it, in `room`.
            headers: Of the input.

        Raises:
            EngineOverloaded: A limit is reached.
            EngineClosed: Nothing is admitted any more.
            RequestMismatch: The request with this id has another key or input.
        """
        if request_id is not None and (known := self._by_id.get((agent, request_id))) is not None:
            if known.print != fingerprint(key, value):
                raise mismatch(request_id)
            return known
        if self._closed is not None:
            raise _fresh(self._closed)
        if self.is_full and not has_room:
            raise EngineOverloaded(
                "the engine has as many requests as it may have",
                where={"waiting": len(self._queue), "open": self.open_count},
                expected="fewer unfinished runs than run.in-flight-max",
                fix="try again later, let callers wait (on_overload='wait'), or raise the limit",
            )
        self._number += 1
        source = request_source(self._life, request_id)
        record = Record(source, self._number, self._number + 1, value, headers=headers)
        is_named = request_id is not None
        request = OpenRequest(
            agent, record, key, request_id, is_kept=is_kept or is_named, wants_receipt=wants_receipt or is_named
        )
        self._by_number[self._number] = request
        if request_id is not None:
            self._by_id[agent, request_id] = request
        self._queue.append(request)
        if self._schedule is not None:
            self._schedule()
        return request

    def find(self, run_id: str) -> OpenRequest | None:
        """Return the request of a run; None: it is not open."""
        number = run_id.rpartition("/")[2]
        request = self._by_number.get(int(number)) if number.isdecimal() else None
        return request if request is not None and request.run_id == run_id else self._restored.get(run_id)

    def of(self, record: Record) -> OpenRequest | None:
        """Return the request of a record; None: it is not open."""
        request = self._by_number.get(record.offset)
        if request is not None and request.record.source == record.source:
            return request
        return self._restored.get(record.run_id)

    def find_id(self, agent: int, request_id: str) -> OpenRequest | None:
        """Return the request with an id; None: it is not open."""
        return self._by_id.get((agent, request_id))

    def chunks_of(self, request: OpenRequest) -> ChunkLog | None:
        """Return the chunks of a request's run; None: callers do not read streams."""
        if request.chunks is None and self._buffers is not None:
            lives = self._life - life_of(request.record.source)
            request.chunks = ChunkLog(lives, self._buffers, is_fresh=lives == 0)
        return request.chunks

    # -- the subtask
    def attach(
        self,
        life: int,
        restored: Mapping[int, Mapping[str, bytes]],
        checkpoint: int,
        find_result: Callable[[int, str], bytes | None],
    ) -> None:
        """Begin a life of the subtask.

        What has come while there was none, or was never durable, is queued, unless keyed state or a restored run has that request.

        Args:
            life: Its number; part of the ids of new runs.
            restored: Place of the agent → ids of the runs that were restored → fingerprints of their requests.
            checkpoint: The checkpoint that the subtask was restored from.
            find_result: Returns the kept result of an agent by its name.
        """
        before = {request.run_id: request for request in (*self._restored.values(), *self._by_number.values())}
        self._life, self._number = life, 0
        self._told_again = self.answered + self.failed - self._counted
        self._paused.clear()
        self._queue.clear()
        self._by_number, self._restored = {}, {}
        for agent, runs in restored.items():
            for run_id, known in runs.items():
                request = before.pop(run_id, None)
                if request is None:
                    request = self._join(agent, run_id, known, before)
                self._restored[run_id] = request
        for run_id, request in before.items():
            if request.is_over:
                self._restored[run_id] = request
            elif not self._finish(request, find_result):
                if request.epoch and request.epoch <= checkpoint:
                    self._lose(request, _lost(run_id))
                else:
                    self._queue_again(request)
        self.attached.set()

    def _join(self, agent: int, run_id: str, known: bytes, before: dict[str, OpenRequest]) -> OpenRequest:
        """Return the entry of a restored run: that of a caller who has asked for it since, or a new one.

        A caller who has asked for something else by the same id gets no answer.
        """
        source, _, offset = run_id.rpartition("/")
        record = Record(source, int(offset), int(offset) + 1, None)
        request_id = request_id_of(run_id)
        waiting = None if request_id is None else self._by_id.get((agent, request_id))
        if waiting is not None and not waiting.is_over and waiting.print != known:
            assert request_id is not None
            self._lose(before.pop(waiting.run_id), mismatch(request_id))
            waiting = None
        if waiting is None or waiting.is_over:
            request = OpenRequest(agent, record, b"", request_id, is_kept=request_id is not None)
        else:
            request = before.pop(waiting.run_id)
            request.record, request.outputs = record, ()
        request.fingerprint = known
        request.epoch, request.is_durable = 1, True
        if request_id is not None:
            self._by_id[agent, request_id] = request
        request.wake()
        return request

    def _finish(self, request: OpenRequest, find_result: Callable[[int, str], bytes | None]) -> bool:
        """Answer a request from its kept result, if there is one."""
        stored = None if not request.is_kept else find_result(request.agent, result_name(request.run_id))
        if stored is None:
            return False
        result = decode_result(stored)
        if request.request_id is not None and result.fingerprint != request.print:
            self._lose(request, mismatch(request.request_id))
            return True
        source, _, offset = result.run_id.rpartition("/")
        request.record = msgspec.structs.replace(request.record, source=source, offset=int(offset))
        request.outputs, request.error = result.outputs, result.failure
        request.is_over = request.is_durable = True
        _release_chunks(request)
        if request.request_id is not None:
            self._by_id.pop((request.agent, request.request_id), None)
        request.wake()
        return True

    def _queue_again(self, request: OpenRequest) -> None:
        self._number += 1
        request.record = msgspec.structs.replace(
            request.record,
            source=request_source(self._life, request.request_id),
            offset=self._number,
            next_offset=self._number + 1,
        )
        request.epoch = 0
        self._by_number[self._number] = request
        self._queue.append(request)

    def open(self, schedule: Callable[[], object]) -> None:
        """Let requests be admitted; ``schedule`` is called when there are some."""
        self._schedule = schedule
        if self._queue:
            schedule()

    def take(self, requests_max: int) -> list[OpenRequest]:
        """Return the next requests to be admitted."""
        if self._schedule is None:
            return []
        queue = self._queue
        taken = [queue.popleft() for _ in range(min(requests_max, len(queue)))]
        if self._blocked:
            self._admit_blocked()
        return taken

    @property
    def has_queued(self) -> bool:
        """Whether requests wait to be admitted."""
        return bool(self._queue) and self._schedule is not None

    def pause(self, agent: int) -> None:
        """Let nothing more come: an operator has as many runs as it may have."""
        self._paused.add(agent)

    def resume(self, agent: int) -> None:
        """Let requests come again."""
        self._paused.discard(agent)
        self._admit_blocked()

    def _admit_blocked(self) -> None:
        while self._blocked and not self.is_full:
            future = next(iter(self._blocked))
            del self._blocked[future]
            if not future.done():
                self._reserved += 1
                future.set_result(None)

    def acknowledge(self, effect: AcknowledgeRequest) -> None:
        """Tell that an input is durable."""
        request = self.of(effect.record)
        if request is not None:
            request.is_durable = True
            request.wake()

    def answer(self, effect: AnswerRequest) -> None:
        """Take outputs, and the end; what a restart tells again is known."""
        request = self.of(effect.record)
        if request is None or request.is_over:
            return
        known = request.outputs
        request.outputs = [*known, *effect.outputs[len(known) - effect.first :]] if known else effect.outputs
        if effect.is_final:
            request.is_over = request.is_durable = True
            _release_chunks(request)
            request.error, request.is_refused = effect.error, effect.is_refused
            if request.key or not self._told_again:
                self.answered += effect.error is None
                self.failed += effect.error is not None
            else:  # of a run that had ended before a restart, and is made again from its records
                self._told_again -= 1
            if effect.is_kept:
                self._kept.append(request)
            else:
                self._forget(request)
        request.wake()

    def _forget(self, request: OpenRequest) -> None:
        if self._by_number.get(request.record.offset) is request:
            del self._by_number[request.record.offset]
        else:
            self._restored.pop(request.run_id, None)
        if request.request_id is not None:
            self._by_id.pop((request.agent, request.request_id), None)

    def barrier(self) -> None:
        """Note that a checkpoint takes the results so far."""
        self._counted_before = self.answered + self.failed
        self._kept_before += self._kept
        self._kept = []

    def checkpoint_completed(self) -> None:
        """Forget the answers that keyed state has."""
        for request in self._kept_before:
            self._forget(request)
        self._kept_before = []
        self._counted = self._counted_before

    # -- the end
    def stop(self, error: Exception) -> None:
        """Admit no new requests; those in the queue still are."""
        self._closed = self._closed or error
        blocked, self._blocked = self._blocked, {}
        for future in blocked:
            if not future.done():
                self._reserved += 1
                future.set_result(None)

    def detach(self) -> None:
        """End a life of the subtask: nothing is admitted until the next one."""
        self._schedule = None
        self.attached.clear()

    def close(self, error: Exception) -> None:
        """Tell everybody that no answer will come: the runs go on when the job is started again."""
        self.detach()
        self.stop(error)
        self.attached.set()  # whoever waits for it sees that there is none any more
        for request in (*self._restored.values(), *self._by_number.values()):
            if not request.is_over:
                self._lose(request, error)
        self._by_number.clear()
        self._restored.clear()
        self._by_id.clear()
        self._queue.clear()
        self._kept, self._kept_before = [], []

    def _lose(self, request: OpenRequest, error: Exception) -> None:
        request.lost = error
        _release_chunks(request)
        if request.request_id is not None:
            self._by_id.pop((request.agent, request.request_id), None)
        request.wake()


def mismatch(request_id: str) -> RequestMismatch:
    """Return the error for a request with the id of another one."""
    return RequestMismatch(
        f"request '{request_id}' was submitted before, with another key or input",
        where={"request_id": request_id},
        expected="the same request, or another id",
        fix="give every new request an id of its own; a repeated one gets the first one's answer",
    )


def refusal(run_id: str, error: ErrorReport) -> RequestError:
    """Return the error for a request that its key has not let in."""
    if error.type == "KeyOverflow":
        return EngineOverloaded(
            "as many inputs wait behind this key as may",
            where={"request": run_id},
            expected="fewer than key.pending-max",
            fix="try again later, or raise the limit",
        )
    return RunFailed(run_id, error.type, error.message)


def _lost(run_id: str) -> RequestLost:
    return RequestLost(
        "the subtask restarted in the moment between the end of the run and its answer",
        where={"run": run_id},
        expected="nothing of the sort: the run has ended, once, and what it did stays",
        fix="submit with a request id: its answer is kept, and can be asked for again",
    )


def closed() -> EngineClosed:
    """Return the error for a request to an engine that has ended, or ends."""
    return EngineClosed(
        "the engine is closed, or draining",
        expected="a running engine",
        fix="what was accepted goes on when an engine is started on the same state; ask again with the request id",
    )
