"""An engine as JSON endpoints: an ASGI application to mount in FastAPI, Starlette or any ASGI server (extra ``asgi``).

    app.mount("/agents", engine_app(engine))

    POST /submit        {"key", "value", "request_id"?, "agent"?, "timeout"?}   200 {"outputs"}
    POST /stream        the same                                       server-sent events: output …, then end or error
    POST /send          the same                                       202 {"run_id"}, and Location
    GET  /runs          unfinished runs
    GET  /runs/{run_id} ?wait=5s                                       200 done or failed · 202 unfinished · 404
    POST /signal        {"key", "name", "value"?, "correlation"?, "run"?, "agent"?}   202
    POST /cancel        {"key", "run"?, "reason"?, "agent"?}           202
    GET  /stats
    GET  /openapi.json

The header ``Idempotency-Key`` is the request id where the body has none; ``traceparent`` and the other trace headers go into the run.
An error is ``{"error": {"type", "message", "fix"?, "run_id"?, "outputs"?}}``: 400 and 422 are the caller's, 409 another request has that
id, 503 with ``Retry-After`` a limit or a closing engine, 504 the timeout (the run goes on), 500 a run that failed.

Whoever mounts it decides who may call it: there is no authentication here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agentflow.api.durations import duration_ms
from agentflow.errors import (
    AgentflowError,
    ConfigError,
    EngineClosed,
    EngineOverloaded,
    RecordTooLarge,
    RequestMismatch,
    RunFailed,
    UnknownRun,
)
from agentflow.integrations.asgi_openapi import openapi_document

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
_HEARTBEAT_S = 15.0
_STATUSES: dict[type[Exception], int] = {
    TimeoutError: 504,
    TypeError: 422,
    ValueError: 422,
    ConfigError: 422,
    RecordTooLarge: 413,
    RequestMismatch: 409,
    EngineOverloaded: 503,
    EngineClosed: 503,
    UnknownRun: 404,
    RunFailed: 500,
}
_encode = msgspec.json.Encoder().encode


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
            except (_BadRequest, TimeoutError, TypeError, ValueError, AgentflowError) as error:
                return _refused(error)

        return answer

    routes = [
        Route("/submit", answering(endpoints.submit), methods=["POST"]),
        Route("/stream", answering(endpoints.stream), methods=["POST"]),
        Route("/send", answering(endpoints.send), methods=["POST"]),
        Route("/signal", answering(endpoints.signal), methods=["POST"]),
        Route("/cancel", answering(endpoints.cancel), methods=["POST"]),
        Route("/runs", answering(endpoints.runs), methods=["GET"]),
        Route("/runs/{run_id:path}", answering(endpoints.run), methods=["GET"]),
        Route("/stats", answering(endpoints.stats), methods=["GET"]),
        Route("/openapi.json", answering(endpoints.openapi), methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class _Endpoints:
    def __init__(self, engine: EngineLike, title: str, body_max_bytes: int) -> None:
        self._engine = engine
        self._title = title
        self._body_max_bytes = body_max_bytes

    async def submit(self, request: Request) -> Response:
        asked, options = await self._input(request)
        outputs = await self._engine.submit(asked.key, asked.value, timeout=_timeout(asked.timeout), **options)
        return _json(200, {"outputs": outputs})

    async def stream(self, request: Request) -> Response:
        asked, options = await self._input(request)
        seen = request.headers.get("last-event-id", "")
        skip = int(seen) + 1 if seen.isdecimal() and options["request_id"] is not None else 0
        outputs = self._engine.stream(asked.key, asked.value, skip=skip, **options)
        first = asyncio.ensure_future(anext(outputs, _END))
        await asyncio.sleep(0)  # its first step: what is refused at once is an answer, and no stream
        if first.done():
            first.result()
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(outputs, first, skip), media_type="text/event-stream", headers=headers)

    async def send(self, request: Request) -> Response:
        asked, options = await self._input(request)
        run_id = await self._engine.send(asked.key, asked.value, **options)
        place = request.scope.get("root_path", "")
        return _json(202, {"run_id": run_id}, {"Location": f"{place}/runs/{run_id}"})

    async def run(self, request: Request) -> Response:
        run_id: str = request.path_params["run_id"]
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
        text = request.query_params.get("limit", "100")
        if not text.isdecimal() or not 0 < int(text) <= 10_000:
            raise _BadRequest(f"limit is a number from 1 to 10000, not {text!r}")
        return _json(200, {"runs": msgspec.to_builtins(self._engine.runs(limit=int(text)))})

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

    async def _input(self, request: Request) -> tuple[_Input, dict[str, Any]]:
        asked = await self._body(request, _Input)
        request_id = asked.request_id or request.headers.get("idempotency-key")
        headers = {name: request.headers[name] for name in _TRACE_HEADERS if name in request.headers}
        return asked, {"request_id": request_id, "agent": asked.agent, "headers": headers}

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


async def _events(outputs: AsyncIterator[Any], first: asyncio.Future[Any], place: int) -> AsyncIterator[bytes]:
    """Yield server-sent events: an output each, with its place as id; a comment once in a while keeps the connection."""
    coming = first
    try:
        while True:
            await asyncio.wait([coming], timeout=_HEARTBEAT_S)
            if not coming.done():
                yield b": wait\n\n"
                continue
            try:
                output = coming.result()
            except (TypeError, AgentflowError) as error:
                yield b"event: error\ndata: " + _encode(_error(error)) + b"\n\n"
                return
            if output is _END:
                yield b"event: end\ndata: {}\n\n"
                return
            yield b"event: output\nid: %d\ndata: " % place + _encode(output) + b"\n\n"
            place += 1
            coming = asyncio.ensure_future(anext(outputs, _END))
    finally:
        coming.cancel()


def _timeout(value: str | float | None) -> float | None:
    if value is None or isinstance(value, int | float):
        return value
    return float(value) if value.replace(".", "", 1).isdecimal() else duration_ms(value) / 1000


def _error(error: Exception) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": type(error).__name__, "message": str(error).partition("\n")[0]}
    if isinstance(error, AgentflowError):
        fields["message"] = error.what
        fields |= {"fix": error.fix} if error.fix else {}
    if isinstance(error, RunFailed):
        fields |= {
            "run_id": error.run_id,
            "error_type": error.error_type,
            "error_message": error.error_message,
            "outputs": error.outputs,
        }
    if isinstance(error, _BadRequest):
        fields["type"] = "BadRequest"
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


def _json(status: int, value: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encode(value), status, headers, "application/json")
