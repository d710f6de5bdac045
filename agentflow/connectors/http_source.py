"""Records by HTTP: a POST is answered when its records are durable (extra ``http``).

    POST /records   one JSON value                                  202 {"run_id": "requests/3/17"}
    POST /records   Content-Type: application/x-ndjson, one a line  202 {"run_ids": […]}

With the header ``Idempotency-Key`` a record that is sent again is accepted once (line n of many: ``key/n``), for `request-id.retention`.
``traceparent`` and the other trace headers go with the record. Answers that are no 202: 400 no JSON, 409 another record has that id,
413 too large, 422 no key, 503 with ``Retry-After`` a limit, or the job stops; of several lines ``errors`` says which, and the others
are accepted. Whoever can reach the port can send: put it behind what authenticates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from agentflow.api.codecs import JSON
from agentflow.core.trace_context import TRACE_HEADERS
from agentflow.errors import (
    AgentflowError,
    ConfigError,
    DecodeError,
    EngineClosed,
    EngineOverloaded,
    RecordTooLarge,
    RequestMismatch,
    SourceError,
)

if TYPE_CHECKING:
    from aiohttp import web

    from agentflow.core.records import Headers, Record
    from agentflow.runtime.ports import Accept

LINES_MAX = 10_000
_STATUSES: dict[type[Exception], int] = {
    DecodeError: 400,
    RequestMismatch: 409,
    RecordTooLarge: 413,
    EngineOverloaded: 503,
    EngineClosed: 503,
}
_LINES = ("application/x-ndjson", "application/jsonl", "application/json-lines")
_encode = msgspec.json.Encoder().encode


class HttpSource:
    """See the module's docstring. It never ends.

    Args:
        host: Address to listen on.
        port: Port; 0: any free one, see `address`.
        path: Path of the endpoint.
        body_max_bytes: Largest body; of many lines, of all of them.

    Attributes:
        address: Where it listens, ``host:port``; empty while it does not.
    """

    name = "http"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(
        self, host: str = "127.0.0.1", port: int = 8080, path: str = "/records", *, body_max_bytes: int = 16 * 2**20
    ) -> None:
        try:
            import aiohttp  # noqa: F401 (asked for now, so that a job without it does not start)
        except ImportError as error:
            raise ConfigError(["source http needs a package: pip install 'agentflow[http]'"]) from error
        if not path.startswith("/"):
            raise ConfigError([f"source http: the path '{path}' does not begin with a /"])
        self.address = ""
        self._place = (host, port, path)
        self._answering: set[asyncio.Task[object]] = set()
        self._body_max_bytes = body_max_bytes
        self._accept: Accept | None = None
        self._runner: web.AppRunner | None = None

    def accept_by(self, accept: Accept) -> None:
        """See `Ingress`."""
        self._accept = accept

    async def open(self, positions: Mapping[str, int]) -> None:  # noqa: ARG002 (what is accepted is in the job's state)
        """Listen.

        Raises:
            SourceError: The port cannot be had.
        """
        from aiohttp import web

        host, port, path = self._place
        app = web.Application(client_max_size=self._body_max_bytes)
        app.router.add_post(path, self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise SourceError(
                f"the port cannot be listened on: {error.strerror or error}",
                where={"address": f"{host}:{port}"},
                expected="a port that nobody else has",
                fix="name another port (source.http.port), or stop whoever listens there",
            ) from error
        listening, bound, *_ = self._runner.addresses[0]
        self.address = f"{listening}:{bound}"

    async def fetch(self, records_max: int) -> Sequence[Record]:  # noqa: ARG002 (the port)
        """Wait until it is cancelled."""
        await asyncio.get_running_loop().create_future()
        return []

    async def close(self) -> None:
        """Listen no more."""
        runner, self._runner, self.address = self._runner, None, ""
        if runner is not None:
            for answering in self._answering:
                answering.cancel()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        """Answer a request; 503 where the source is closed before it is known whether the records are durable."""
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            return await self._take(request)
        except asyncio.CancelledError:
            if self._runner is not None:  # the sender has gone
                raise
            task.uncancel()
            return _refused(
                EngineClosed(
                    "the job stops or restarts, and whether it has the record is not known",
                    fix="send it again: with the same Idempotency-Key it is accepted once",
                )
            )
        finally:
            self._answering.discard(task)

    async def _take(self, request: web.Request) -> web.Response:
        from aiohttp import web

        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _refused(
                RecordTooLarge(
                    f"the body has more than {self._body_max_bytes:,} bytes", fix="send fewer records at once"
                )
            )
        headers = tuple(
            (name, request.headers[name].encode(errors="surrogateescape"))
            for name in sorted(TRACE_HEADERS & request.headers.keys())
        )
        request_id = request.headers.get("Idempotency-Key")
        if request.content_type in _LINES:
            return await self._take_lines(body, request_id, headers)
        try:
            run_id = await self._record(body, request_id, headers)
        except (AgentflowError, TypeError) as error:
            return _refused(error)
        return _json(202, {"run_id": run_id})

    async def _take_lines(self, body: bytes, request_id: str | None, headers: Headers) -> web.Response:
        lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
        if len(lines) > LINES_MAX:
            return _refused(RecordTooLarge(f"more than {LINES_MAX:,} lines at once", fix="send fewer"))
        taken = await asyncio.gather(
            *(
                self._record(line, f"{request_id}/{number}" if request_id else request_id, headers)
                for number, line in lines
            ),
            return_exceptions=True,
        )
        errors = [
            (number, one) for (number, _), one in zip(lines, taken, strict=True) if isinstance(one, BaseException)
        ]
        for _, error in errors:
            if not isinstance(error, AgentflowError | TypeError):
                raise error
        run_ids = [one if isinstance(one, str) else None for one in taken]
        if not errors:
            return _json(202, {"run_ids": run_ids})
        status = max(_status(error) for _, error in errors)
        told = [{"line": number, **_described(error)} for number, error in errors]
        return _json(status, {"run_ids": run_ids, "errors": told}, is_late=status == 503)

    async def _record(self, value: bytes, request_id: str | None, headers: Headers) -> str:
        if self._accept is None:
            raise EngineClosed("the job has not started yet", fix="try again in a moment")
        return await self._accept(value, request_id, headers)


def _status(error: BaseException) -> int:
    return next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 422)


def _described(error: BaseException) -> dict[str, str]:
    what = error.what if isinstance(error, AgentflowError) else str(error)
    return {"type": type(error).__name__, "message": what}


def _refused(error: AgentflowError | TypeError) -> web.Response:
    status = _status(error)
    return _json(status, {"error": _described(error)}, is_late=status == 503)


def _json(status: int, value: object, *, is_late: bool = False) -> web.Response:
    from aiohttp import web

    headers = {"Retry-After": "1"} if is_late else None
    return web.Response(status=status, body=_encode(value), content_type="application/json", headers=headers)
