"""An engine as JSON endpoints: an ASGI application to mount in FastAPI, Starlette or any ASGI server (extra ``asgi``).

    app.mount("/agents", engine_app(engine))

    POST /submit        {"key", "value", "request_id"?, "agent"?, "timeout"?}   200 {"outputs"}
    POST /stream        the same, "tokens"?                            server-sent events: output …, then end or error
    POST /send          the same; the timeout is that of its acceptance   202 {"run_id"}, and Location
    GET  /runs          unfinished runs
    GET  /runs/{run_id} ?wait=5s                                       200 done or failed · 202 unfinished · 404
    POST /signal        {"key", "name", "value"?, "correlation"?, "run"?, "agent"?}   202
    POST /cancel        {"key", "run"?, "reason"?, "agent"?}           202
    GET  /inbox         who waits for a signal
    POST /inbox/{id}/approve   {"reason"?, "arguments"?, "by"?}        202 · 404
    POST /inbox/{id}/deny      {"reason"?, "by"?}                      202 · 404
    GET  /stats
    GET  /openapi.json

The header ``Idempotency-Key`` is the request id where the body has none (else they must agree); ``traceparent`` and the other trace headers go into the run.
An error is ``{"error": {"type", "message", "fix"?, "run_id"?, "outputs"?}}``: 400 and 422 are the caller's, 409 another request has that
id, 503 with ``Retry-After`` a limit or a closing engine, 504 the timeout (the run goes on), 500 a run that failed. A stream that has begun
ends with the same as its event ``error``.

With ``"tokens": true`` a stream has also what actions write to `ctx.stream`: the events ``token`` …, ``reset`` (what came of that step is
void), ``gap`` (some are missing) and ``step-end`` (what came of that step is final), each a `StreamChunk`. With a request id, Last-Event-ID
goes on behind the event of that id.

Whoever mounts it decides who may call it: there is no authentication here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agentflow.api.durations import duration_ms
from agentflow.api.streams import ChunkKind, StreamChunk
from agentflow.errors import (
    AgentflowError,
    ConfigError,
    EngineClosed,
    EngineOverloaded,
    RecordTooLarge,
    RequestMismatch,
    RunFailed,
    UnknownRun,
    UnknownWait,
)
from agentflow.integrations.asgi_openapi import openapi_document

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
_HEARTBEAT_S = 15.0
_DIGITS_MAX = 19  # of an offset, and of the place of an output
_STATUSES: dict[type[Exception], int] = {
    TimeoutError: 504,
    TypeError: 422,
    ValueError: 422,
    OverflowError: 422,
    RecursionError: 422,
    ConfigError: 422,
    RecordTooLarge: 413,
    RequestMismatch: 409,
    EngineOverloaded: 503,
    EngineClosed: 503,
    UnknownRun: 404,
    UnknownWait: 404,
    RunFailed: 500,
}
_TEXTS: dict[type[Exception], tuple[str, str]] = {  # of errors that do not say it themselves: what, and what to do
    TimeoutError: (
        "the timeout is over before the run; it goes on, unless it still waited for room",
        "send the same request again: with the same request_id it joins the run, or gets its outputs; GET /runs lists unfinished runs",
    ),
    OverflowError: ("an integer does not fit into 64 bits", "send it as text"),
    RecursionError: ("the body is nested too deeply", "send it flatter, or as text"),
}
_CHUNK_EVENTS = {ChunkKind.RESET: b"reset", ChunkKind.GAP: b"gap", ChunkKind.END: b"step-end"}  # the others: token
_encode = msgspec.json.Encoder().encode


_OF_THE_CALLER = (TimeoutError, TypeError, ValueError, OverflowError, RecursionError)


class EngineLike(Protocol):
    """What the endpoints need of an `agentflow.Engine`."""

    async def start(self) -> None: ...  # noqa: D102
    async def close(self) -> None: ...  # noqa: D102
    @property
    def submit(self) -> Callable[..., Awaitable[list[Any]]]: ...  # noqa: D102
    @property
    def stream(self) -> Callable[..., AsyncIterator[Any]]: ...  # noqa: D102
    @property
    def send(self) -> Callable[..., Awaitable[str]]: ...  # noqa: D102
    @property
    def result(self) -> Callable[..., Awaitable[list[Any]]]: ...  # noqa: D102
    @property
    def signal(self) -> Callable[..., Awaitable[None]]: ...  # noqa: D102
    @property
    def cancel(self) -> Callable[..., Awaitable[None]]: ...  # noqa: D102
    @property
    def approve(self) -> Callable[..., Awaitable[None]]: ...  # noqa: D102
    @property
    def deny(self) -> Callable[..., Awaitable[None]]: ...  # noqa: D102
    def inbox(self, *, limit: int = 1000) -> list[Any]: ...  # noqa: D102
    def runs(self, *, limit: int = 100) -> list[Any]: ...  # noqa: D102
    def run(self, run_id: str) -> Any: ...  # noqa: ANN401, D102
    def stats(self) -> Any: ...  # noqa: ANN401, D102
    @property
    def plans(self) -> tuple[Any, ...]: ...  # noqa: D102


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    key: Any
    value: Any = None
    request_id: str | None = None
    agent: str | None = None
    timeout: str | float | None = None


class _Followed(_Input, forbid_unknown_fields=True):
    tokens: bool = False


class _Signal(msgspec.Struct, forbid_unknown_fields=True):
    key: Any
    name: str
    value: Any = None
    correlation: str = ""
    run: str = ""
    agent: str = ""


class _Cancellation(msgspec.Struct, forbid_unknown_fields=True):
    key: Any
    run: str = ""
    reason: str = ""
    agent: str = ""


class _Denial(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""
    by: str | None = None


class _Approval(_Denial, forbid_unknown_fields=True):
    arguments: dict[str, Any] | None = None


class _BadRequest(Exception):
    """The body is no JSON, or not what the endpoint takes."""


def engine_app(
    engine: EngineLike, *, title: str = "agentflow", starts_engine: bool = False, body_max_bytes: int = 4 * 2**20
) -> ASGIApp:
    """Return the application.

    Args:
        engine: The engine; running, unless ``starts_engine``.
        title: Title of the OpenAPI document.
        starts_engine: Start the engine with the application and close it with it: for an application that stands alone. One that is
            mounted gets no life-cycle events: its host opens the engine.
        body_max_bytes: Largest body.
    """
    endpoints = _Endpoints(engine, title, body_max_bytes)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:  # noqa: ARG001 (the signature)
        if starts_engine:
            await engine.start()
        try:
            yield
        finally:
            if starts_engine:
                await engine.close()

    def answering(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request)
            except (_BadRequest, AgentflowError, *_OF_THE_CALLER) as error:
                return _refused(error)

        return answer

    routes = [
        Route("/submit", answering(endpoints.submit), methods=["POST"]),
        Route("/stream", answering(endpoints.stream), methods=["POST"]),
        Route("/send", answering(endpoints.send), methods=["POST"]),
        Route("/signal", answering(endpoints.signal), methods=["POST"]),
        Route("/cancel", answering(endpoints.cancel), methods=["POST"]),
        Route("/inbox", answering(endpoints.inbox), methods=["GET"]),
        Route("/inbox/{wait_id}/approve", answering(endpoints.approve), methods=["POST"]),
        Route("/inbox/{wait_id}/deny", answering(endpoints.deny), methods=["POST"]),
        Route("/runs", answering(endpoints.runs), methods=["GET"]),
        Route("/runs/{run_id:path}", answering(endpoints.run), methods=["GET"]),
        Route("/stats", answering(endpoints.stats), methods=["GET"]),
        Route("/openapi.json", answering(endpoints.openapi), methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_endpoint})


class _Endpoints:
    def __init__(self, engine: EngineLike, title: str, body_max_bytes: int) -> None:
        self._engine = engine
        self._title = title
        self._body_max_bytes = body_max_bytes

    async def submit(self, request: Request) -> Response:
        asked, timeout_s, options = await self._input(request)
        outputs = await self._engine.submit(asked.key, asked.value, timeout=timeout_s, **options)
        return _json(200, {"outputs": outputs})

    async def stream(self, request: Request) -> Response:
        asked, timeout_s, options = await self._input(request, _Followed)
        until_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        seen = request.headers.get("last-event-id")
        skip, after = (0, 0) if not seen or options["request_id"] is None else _position(seen)
        if asked.tokens:
            options |= {"tokens": True, "after": after}
        outputs = self._engine.stream(asked.key, asked.value, skip=skip, **options)
        first = asyncio.ensure_future(anext(outputs, _END))
        await asyncio.sleep(0)  # its first step: what is refused at once is an answer, and no stream
        if first.done():
            first.result()
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _events(outputs, first, skip, after if asked.tokens else None, until_s),
            media_type="text/event-stream",
            headers=headers,
        )

    async def send(self, request: Request) -> Response:
        asked, timeout_s, options = await self._input(request)
        try:
            async with asyncio.timeout(timeout_s):
                run_id = await self._engine.send(asked.key, asked.value, **options)
        except TimeoutError as error:
            msg = "the timeout is over before the input is durable; it may be accepted all the same"
            raise TimeoutError(msg) from error
        place = quote(request.scope.get("root_path", ""))
        return _json(202, {"run_id": run_id}, {"Location": f"{place}/runs/{_path_of(run_id)}"})

    async def run(self, request: Request) -> Response:
        run_id: str = request.path_params["run_id"]
        if len(number := run_id.rpartition("/")[2]) > _DIGITS_MAX and number.isdecimal():
            msg = f"a run id ends with a number of at most {_DIGITS_MAX} digits; this one has {len(number):,}"
            raise ValueError(msg)
        wait = _timeout(request.query_params.get("wait"))
        view = self._engine.run(run_id)
        if view is not None and not wait:
            return _json(202, {"run_id": run_id, "state": "unfinished", "run": msgspec.to_builtins(view)})
        try:
            outputs = await self._engine.result(run_id, timeout=wait or 1.0)
        except TimeoutError:
            return _json(202, {"run_id": run_id, "state": "unfinished"})
        except RunFailed as failed:
            return _json(200, {"run_id": run_id, "state": "failed", "error": _error(failed)})
        return _json(200, {"run_id": run_id, "state": "done", "outputs": outputs})

    async def runs(self, request: Request) -> Response:
        return _json(200, {"runs": msgspec.to_builtins(self._engine.runs(limit=_limit(request, "100")))})

    async def inbox(self, request: Request) -> Response:
        return _json(200, {"waits": msgspec.to_builtins(self._engine.inbox(limit=_limit(request, "1000")))})

    async def approve(self, request: Request) -> Response:
        asked = await self._body(request, _Approval)
        given = {"reason": asked.reason, "arguments": asked.arguments, "by": asked.by}
        await self._engine.approve(request.path_params["wait_id"], **given)
        return _json(202, {"accepted": True})

    async def deny(self, request: Request) -> Response:
        asked = await self._body(request, _Denial)
        await self._engine.deny(request.path_params["wait_id"], reason=asked.reason, by=asked.by)
        return _json(202, {"accepted": True})

    async def signal(self, request: Request) -> Response:
        asked = await self._body(request, _Signal)
        await self._engine.signal(
            asked.key, asked.name, asked.value, correlation=asked.correlation, run=asked.run, agent=asked.agent
        )
        return _json(202, {"accepted": True})

    async def cancel(self, request: Request) -> Response:
        asked = await self._body(request, _Cancellation)
        await self._engine.cancel(asked.key, run=asked.run, reason=asked.reason, agent=asked.agent)
        return _json(202, {"accepted": True})

    async def stats(self, request: Request) -> Response:  # noqa: ARG002 (one signature)
        return _json(200, msgspec.to_builtins(self._engine.stats()))

    async def openapi(self, request: Request) -> Response:
        place = request.scope.get("root_path", "") or "/"
        return _json(200, openapi_document(self._title, place, self._engine.plans))

    async def _input(self, request: Request, kind: type[_Input] = _Input) -> tuple[Any, float | None, dict[str, Any]]:
        asked = await self._body(request, kind)
        request_id, header = asked.request_id, request.headers.get("idempotency-key")
        if request_id is not None and header not in (None, request_id):
            msg = f"the request_id of the body is {request_id!r}, and the header Idempotency-Key says {header!r}: send one of them"
            raise ValueError(msg)
        request_id = header if request_id is None else request_id
        headers = {name: request.headers[name] for name in _TRACE_HEADERS if name in request.headers}
        options = {"request_id": request_id, "agent": asked.agent, "headers": headers}
        return asked, _timeout(asked.timeout), options

    async def _body(self, request: Request, kind: type[Any]) -> Any:  # noqa: ANN401 (one of the structs)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._body_max_bytes:
                raise RecordTooLarge(
                    f"the body has more than {self._body_max_bytes:,} bytes", fix="send less, or raise body_max_bytes"
                )
        try:
            return msgspec.json.decode(bytes(body), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _BadRequest(str(error)) from error


_END = object()


async def _events(
    outputs: AsyncIterator[Any], first: asyncio.Future[Any], place: int, offset: int | None, until_s: float | None
) -> AsyncIterator[bytes]:
    """Yield server-sent events: an output each, with its place as id; a comment once in a while keeps the connection.

    Where there are chunks too, ``offset`` is that of the last one, and ids are what `_position` reads.

    At ``until_s`` of the loop's clock it ends with an error; outputs that are there by then are yielded before.
    """
    coming, now_s = first, asyncio.get_running_loop().time
    try:
        while True:
            rest_s = math.inf if until_s is None else max(0.0, until_s - now_s())
            await asyncio.wait([coming], timeout=min(rest_s, _HEARTBEAT_S))
            if not coming.done() and rest_s > _HEARTBEAT_S:
                yield b": wait\n\n"
                continue
            try:
                output = coming.result() if coming.done() else _timed_out()
            except (AgentflowError, *_OF_THE_CALLER) as error:
                yield b"event: error\ndata: " + _encode(_error(error)) + b"\n\n"
                return
            if output is _END:
                yield b"event: end\ndata: {}\n\n"
                return
            if type(output) is StreamChunk:
                offset, event = output.offset, _CHUNK_EVENTS.get(output.kind, b"token")
            else:
                place, event = place + 1, b"output"
            number = b"%d" % (place - 1) if offset is None else b"%d-%d" % (place, offset)
            yield b"event: %b\nid: %b\ndata: " % (event, number) + _encode(output) + b"\n\n"
            coming = asyncio.ensure_future(anext(outputs, _END))
    finally:
        coming.cancel()


def _limit(request: Request, default: str) -> int:
    text = request.query_params.get("limit", default)
    if not text.isdecimal() or len(text) > _DIGITS_MAX or not 0 < int(text) <= 10_000:
        raise _BadRequest(f"limit is a number from 1 to 10000, not {text[:_DIGITS_MAX]!r}")
    return int(text)


def _timed_out() -> NoReturn:
    raise TimeoutError


def _timeout(value: str | float | None) -> float | None:
    if isinstance(value, str):
        return float(value) if value.replace(".", "", 1).isdecimal() else duration_ms(value) / 1000
    if value is not None and value < 0:
        msg = f"a timeout is not negative: {value}"
        raise ValueError(msg)
    return value


def _position(last_event_id: str) -> tuple[int, int]:
    """Return how many outputs, and which chunks, are known to who has seen an event: ``3``, or ``4-17`` where there are chunks."""
    place, dash, offset = last_event_id.partition("-")
    if any(not number.isdecimal() or len(number) > _DIGITS_MAX for number in ([place, offset] if dash else [place])):
        msg = f"Last-Event-ID is the id of an output of the stream: a number of at most {_DIGITS_MAX} digits, or two (4-17)"
        raise ValueError(msg)
    return (int(place), int(offset)) if dash else (int(place) + 1, 0)


def _path_of(run_id: str) -> str:
    """Return a run id as a path; one with segments that clients resolve (``..``) as one segment."""
    return quote(run_id, safe="" if {"", ".", ".."} & {*run_id.split("/")} else "/")


def _error(error: Exception) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": type(error).__name__, "message": str(error).partition("\n")[0]}
    for kind, (what, fix) in _TEXTS.items():
        if isinstance(error, kind):
            fields |= {"message": fields["message"] if kind is TimeoutError and str(error) else what, "fix": fix}
    if isinstance(error, AgentflowError):
        fields["message"] = error.what
        fields |= {"fix": error.fix} if error.fix else {}
    if isinstance(error, ConfigError):
        fields["message"] = "; ".join(error.problems)
    if isinstance(error, RunFailed):
        fields |= {
            "run_id": error.run_id,
            "error_type": error.error_type,
            "error_message": error.error_message,
            "outputs": error.outputs,
        }
    if isinstance(error, _BadRequest):
        fields["type"] = "BadRequest"
    if isinstance(error, OverflowError):
        fields["type"] = "TypeError"  # as of everything else that cannot be encoded
    return fields


def _refused(error: Exception) -> Response:
    status = 400 if isinstance(error, _BadRequest) else 500
    for kind, known in _STATUSES.items():
        if isinstance(error, kind):
            status = known
            break
    if isinstance(error, RunFailed) and error.error_type == "DecodeError":
        status = 422  # the input is not what the agent takes
    return _json(status, {"error": _error(error)}, {"Retry-After": "1"} if status == 503 else {})


async def _no_endpoint(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        told = {"type": "MethodNotAllowed", "message": f"{path} takes {allowed}, not {request.method}"}
    else:
        told = {
            "type": "NotFound",
            "message": f"there is no {path}",
            "fix": "GET /openapi.json describes what there is",
        }
    return _json(error.status_code, {"error": told}, error.headers)


def _json(status: int, value: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encode(value), status, headers, "application/json")
