"""The server: counts requests, waits, answers or goes wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import TracebackType
from typing import Any, NoReturn, Self

import msgspec

from agentflow.errors import ConfigError
from agentflow.testing.model_server.request import ModelRequest
from agentflow.testing.model_server.routes import route_of
from agentflow.testing.model_server.script import (
    Answer,
    ContextTooLong,
    Cut,
    Dropped,
    Fault,
    HttpError,
    Hung,
    MalformedBody,
    Reply,
    Script,
    Stalled,
    StreamFailed,
    Unauthorized,
)
from agentflow.testing.model_server.wire import Wire

try:
    from aiohttp import web
except ImportError as missing:
    raise ConfigError(["the model server needs a package: pip install 'agentflow[http]'"]) from missing

BODY_MAX_BYTES = 64 * 2**20
_JSON = "application/json"
_SCHEMA = b"json_schema"  # of those who refuse some; a load of requests without is not decoded
_encode = msgspec.json.Encoder().encode


class ModelServer:
    """A local HTTP server that speaks the protocols of model providers.

    OpenAI (chat completions, responses, embeddings), Azure OpenAI, DashScope, Anthropic, Ollama, Gemini, Bedrock: all on one port, so
    that each official SDK is pointed to `url` (OpenAI's to ``url + "/v1"``). It answers what ``answer`` decides, and remembers what it
    was asked: the oracle of tests that kill the engine.

        async with ModelServer([Reply("hi"), HttpError(429, retry_after_s=1)]) as server:
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k")

    Args:
        answer: See `Answer`.
        port: 0: any free one.
        latency_ms: Before an answer whose reply does not say it.
        chunk_latency_ms: Before each piece of a stream whose reply does not say it.
        keep_requests: Off: `requests` stays empty; for loads.

    Attributes:
        url: ``http://127.0.0.1:<port>``; empty while it does not listen.
        requests: All requests in the order in which they came.
        answered: Answers that were written to their end, errors included.
        in_flight: Requests that are being answered now.
        in_flight_max: The most there were at a time.
    """

    def __init__(
        self,
        answer: Answer = None,
        *,
        port: int = 0,
        latency_ms: int = 0,
        chunk_latency_ms: int = 0,
        keep_requests: bool = True,
    ) -> None:
        self.url = ""
        self.requests: list[ModelRequest] = []
        self.answered = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self._script = Script(answer)
        self._port = port
        self._latency_ms = latency_ms
        self._chunk_latency_ms = chunk_latency_ms
        self._keep_requests = keep_requests
        self._counts: Counter[tuple[str, str]] = Counter()  # by model and idempotency key
        self._number = 0
        self._encoded: dict[
            tuple[Wire, str, bool, bool], list[bytes]
        ] = {}  # portions of the one reply that never changes
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen."""
        server = web.Server(
            self._handle,
            handler_cancellation=True,  # a client that goes away ends its request
            request_factory=_request,
            access_log=None,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=4_096).start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"

    async def close(self) -> None:
        """End all connections; requests that wait for an answer get none."""
        runner, self._runner, self.url = self._runner, None, ""
        if runner is None:
            return
        assert runner.server is not None, "it was set up"
        for connection in runner.server.connections:
            connection.force_close()
        await runner.cleanup()

    @property
    def connections(self) -> int:
        """How many connections of clients are open."""
        return len(self._runner.server.connections) if self._runner and self._runner.server else 0

    def count(self, model: str | None = None, idempotency_key: str | None = None) -> int:
        """Return how many requests came: all, or those of a model, of an idempotency key, of both."""
        return sum(
            count
            for (of_model, of_key), count in self._counts.items()
            if model in {None, of_model} and idempotency_key in {None, of_key}
        )

    def counts(self) -> dict[str, Any]:
        """Return all counters, as ``GET /_server/counts`` does."""
        models: Counter[str] = Counter()
        keys: Counter[str] = Counter()
        for (model, key), count in self._counts.items():
            models[model] += count
            if key:
                keys[key] += count
        return {
            "received": self.count(),
            "answered": self.answered,
            "in_flight": self.in_flight,
            "in_flight_max": self.in_flight_max,
            "models": dict(models),
            "idempotency_keys": dict(keys),
        }

    def reset(self) -> None:
        """Forget all requests, and begin a list of replies again."""
        self.requests.clear()
        self._counts.clear()
        self._script.reset()
        self._number = 0
        self.answered = 0
        self.in_flight_max = self.in_flight

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        if http.path.startswith("/_server/"):
            return self._control(http)
        route = route_of(http.path)
        if route is None or http.method != "POST":
            return web.json_response({"error": {"message": f"nobody lives at {http.method} {http.path}"}}, status=404)
        raw = await http.read()
        try:
            request = ModelRequest(route.wire, http.path, route.named, http.headers, raw, self._number + 1)
        except msgspec.DecodeError as error:
            wrong = HttpError(400, message=f"We could not parse the JSON body of your request: {error}")
            return web.Response(body=route.wire.error(wrong), status=400, content_type=_JSON)
        self._number = request.number
        self._counts[request.model, request.idempotency_key] += 1
        if self._keep_requests:
            self.requests.append(request)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            response = await self._answer(http, request)
            await response.prepare(http)
            await response.write_eof()
            request.is_answered = True
            self.answered += 1
        except ConnectionError as error:  # the client went away just now: as if its end had come a moment earlier
            raise asyncio.CancelledError from error
        finally:
            self.in_flight -= 1
        return response

    def _control(self, http: web.BaseRequest) -> web.Response:
        """Tell a test in another process what was asked."""
        match http.method, http.path:
            case "GET", "/_server/requests":
                return web.Response(body=_encode([one.to_json() for one in self.requests]), content_type=_JSON)
            case "GET", "/_server/counts":
                return web.Response(body=_encode(self.counts()), content_type=_JSON)
            case "POST", "/_server/reset":
                self.reset()
                return web.Response(status=204)
        return web.Response(status=404)

    async def _answer(self, http: web.BaseRequest, request: ModelRequest) -> web.StreamResponse:
        """Return a response that only has to be ended."""
        wire = request.wire
        if _SCHEMA in request.raw and (refused := wire.refused_schema(request.body)):
            return self._error(request, refused)
        decided = await self._script.decide(request)
        await _wait(self._latency_ms if (own := getattr(decided, "latency_ms", None)) is None else own)
        match decided:
            case Reply():
                failed = wire.refused(decided)
                return self._error(request, failed) if failed else await self._reply(http, request, decided)
            case HttpError():
                return self._error(request, decided)
            case ContextTooLong():
                return self._error(request, wire.context_too_long())
            case Unauthorized():
                return self._error(request, wire.unauthorized(request.api_key))
            case Dropped():
                await _drop(http)
            case Hung():
                await _hang()
            case StreamFailed() if not request.is_stream:
                return self._error(request, HttpError(decided.status))
            case MalformedBody() if not request.is_stream:
                body = wire.whole(decided.reply, request)
                return _response(request, body[: len(body) // 2])
        return await self._spoil(http, request, decided)

    async def _reply(self, http: web.BaseRequest, request: ModelRequest, reply: Reply) -> web.StreamResponse:
        portions = self._portions(request, reply)
        if not request.is_stream:
            return _response(request, portions[0])
        latency_ms = self._chunk_latency_ms if reply.chunk_latency_ms is None else reply.chunk_latency_ms
        response = await _begin_stream(http, request)
        if not latency_ms:
            await response.write(b"".join(portions))
            return response
        for portion in portions:
            await _wait(latency_ms)
            await response.write(portion)
        return response

    def _portions(self, request: ModelRequest, reply: Reply) -> list[bytes]:
        """Return what is sent; of the one reply that never changes, what was sent before, with the id that it had then."""
        shape = (request.wire, request.model, request.is_stream, request.wants_usage)
        if reply is self._script.fixed and (known := self._encoded.get(shape)):
            return known
        wire = request.wire
        portions = wire.stream(reply, request) if request.is_stream else [wire.whole(reply, request)]
        if reply is self._script.fixed and not reply.tool_calls and request.api != "embeddings":
            self._encoded[shape] = portions
        return portions

    @staticmethod
    def _error(request: ModelRequest, failed: HttpError) -> web.Response:
        headers = request.wire.error_headers(failed) | _id_header(request)
        return web.Response(body=request.wire.error(failed), status=failed.status, headers=headers, content_type=_JSON)

    async def _spoil(self, http: web.BaseRequest, request: ModelRequest, fault: Fault) -> web.StreamResponse:
        """Begin an answer, and let it go wrong."""
        assert isinstance(fault, Stalled | Cut | StreamFailed | MalformedBody), fault
        if request.is_stream:
            portions = request.wire.stream(fault.reply, request)
            response = await _begin_stream(http, request)
            kept = min(1, len(portions) - 1) if isinstance(fault, MalformedBody) else fault.after_chunks
            for portion in portions[:kept]:
                await response.write(portion)
            if isinstance(fault, StreamFailed):
                await response.write(request.wire.error_in_stream(HttpError(fault.status)))
                return response
            if isinstance(fault, MalformedBody):
                await response.write(request.wire.broken(portions[kept]))
                return response
        else:
            body = request.wire.whole(fault.reply, request)
            response = web.StreamResponse(headers=_id_header(request))
            response.content_type = _JSON
            response.content_length = len(body)
            await response.prepare(http)
            await response.write(body[: len(body) // 2])
        await (_drop(http) if isinstance(fault, Cut) else _hang())
        return response


def _request(*parts: Any) -> web.BaseRequest:  # noqa: ANN401 (what aiohttp has read of it, which is its own business)
    message, payload, protocol, writer, task = parts
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_MAX_BYTES)


def _id_header(request: ModelRequest) -> dict[str, str]:
    return {request.wire.id_header: f"req_{request.number}"}


def _response(request: ModelRequest, body: bytes) -> web.Response:
    return web.Response(body=body, headers=_id_header(request), content_type=_JSON)


async def _begin_stream(http: web.BaseRequest, request: ModelRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={**_id_header(request), "Cache-Control": "no-cache"})
    response.content_type = request.wire.stream_type
    await response.prepare(http)
    return response


async def _wait(duration_ms: int) -> None:
    if duration_ms:
        await asyncio.sleep(duration_ms / 1_000)


async def _hang() -> NoReturn:
    """Wait until the client or the server goes away, which cancels this."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody ends this wait")


async def _drop(http: web.BaseRequest) -> NoReturn:
    """End the connection, after what was written."""
    http.protocol.force_close()
    await _hang()
    raise AssertionError("the loss of the connection cancels the wait")
