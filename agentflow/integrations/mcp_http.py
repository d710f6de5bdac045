"""The HTTP client below a session with an MCP server.

The SDK sends the requests of all calls in one task group: an error of one request would end the session, and every call of it. So `HTTPClient`
raises nothing: what goes wrong with a request is the answer to it, a JSON-RPC error, and reaches its call only.
"""

from __future__ import annotations

import asyncio
import http
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import httpx2
import msgspec

from agentflow.integrations.header_values import unsendable
from agentflow.integrations.mcp_auth import OAuthClientCredentials, Secrets, basic_credentials

if TYPE_CHECKING:
    from agentflow.integrations.mcp_auth import Auth

SESSION_HEADER: Final = "mcp-session-id"
HTTP_STATUS: Final = "agentflow/http-status"
"""Key in the ``data`` of an error that is no word of the server's: the status of its answer; 0: there was none."""
SESSION_LOST: Final = "agentflow/session-lost"
"""Key beside it: the server does not know the session any more, and has done nothing."""

_BODY_SHOWN = 300  # characters of an answer that says why
_INTERNAL_ERROR = -32603
_REFUSED = {401, 403}


class _TokenRefused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Token(msgspec.Struct):
    access_token: str
    expires_in: float | None = None


class ClientCredentials:
    """The token of a service, shared by all requests and sessions; one request for a token at a time."""

    def __init__(self, auth: OAuthClientCredentials, secrets: Secrets) -> None:
        self._auth = auth
        self._secrets = secrets
        self._lock = asyncio.Lock()
        self._token = ""
        self._renew_at_s = 0.0

    async def token(self, client: HTTPClient, refused: str = "") -> str:
        """Return a token that is not about to expire, and is not the one that was refused."""
        async with self._lock:
            if not self._token or self._token == refused or time.monotonic() >= self._renew_at_s:
                await self._fetch(client)
            return self._token

    async def _fetch(self, client: HTTPClient) -> None:
        form = {"grant_type": "client_credentials", "scope": self._auth.scope, "resource": self._auth.resource}
        request = httpx2.Request(  # none of the client's own headers: they are for the MCP server
            "POST",
            self._auth.token_url,
            data={name: value for name, value in form.items() if value},
            headers={
                "Authorization": f"Basic {basic_credentials(self._auth.client_id, self._auth.client_secret)}",
                "Accept": "application/json",
            },
            extensions={"timeout": client.timeout.as_dict()},
        )
        response = await httpx2.AsyncClient.send(client, request)
        if response.status_code != http.HTTPStatus.OK:
            # 400 is how OAuth says that it does not know the client; of the session's server it would say something else.
            is_passing = response.status_code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
            status = response.status_code if is_passing else http.HTTPStatus.UNAUTHORIZED
            raise _TokenRefused(status, f"no token from {self._auth.token_url}: {_said(response)}")
        try:
            token = msgspec.json.decode(response.content, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _TokenRefused(http.HTTPStatus.BAD_GATEWAY, f"{self._auth.token_url} answers with no token") from None
        self._secrets.add_token(token.access_token)
        if unsendable({"Authorization": token.access_token}):
            why = f"{self._auth.token_url} answers with a token that cannot be sent in a header"
            raise _TokenRefused(http.HTTPStatus.BAD_GATEWAY, why)
        self._token = token.access_token
        # Without a lifetime it is used until it is refused.
        lifetime_s = float("inf") if token.expires_in is None else token.expires_in
        self._renew_at_s = time.monotonic() + max(lifetime_s - 30, lifetime_s * 0.9)


class HTTPClient(httpx2.AsyncClient):
    """A client whose requests say who they come from, and end with an answer in any case.

    Args:
        headers: Of each request.
        auth: Who the requests come from.
        credentials: The token of ``auth`` where it has one; outlives the session.
        timeout_s: To connect, to send, and to wait for a connection.
        read_timeout_s: Between two pieces of an answer.
    """

    def __init__(
        self,
        *,
        headers: dict[str, str],
        auth: Auth | None,
        credentials: ClientCredentials | None,
        timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        super().__init__(
            headers={**headers, **(auth.headers if auth else {})},
            timeout=httpx2.Timeout(timeout_s, read=read_timeout_s),
            # Each call that waits holds a connection: a limit here would let hung calls stop the others.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
        )
        self._credentials = credentials

    async def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:  # noqa: ANN401 (httpx's own)
        """Send a request; what goes wrong is its answer."""
        try:
            response = await self._send_authorized(request, **kwargs)
            kind = response.headers.get("content-type", "").lower()
            if response.status_code >= http.HTTPStatus.BAD_REQUEST:
                await response.aread()
                return _refusal(request, response)
            if kind.startswith("text/event-stream"):
                assert isinstance(response.stream, httpx2.AsyncByteStream)
                response.stream = _EventStream(response.stream)
            elif kind.startswith("application/json"):
                await response.aread()  # here, where an answer that is cut is still an error of this request
        except _TokenRefused as error:
            return _answer(request, error.status, str(error), error.status)
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return _answer(request, http.HTTPStatus.SERVICE_UNAVAILABLE, why, 0)
        return response

    async def _send_authorized(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:  # noqa: ANN401 (as above)
        if self._credentials is None:
            return await super().send(request, **kwargs)
        token = await self._credentials.token(self)
        request.headers["Authorization"] = f"Bearer {token}"
        response = await super().send(request, **kwargs)
        if response.status_code == http.HTTPStatus.UNAUTHORIZED:
            await response.aclose()
            request.headers["Authorization"] = f"Bearer {await self._credentials.token(self, refused=token)}"
            response = await super().send(request, **kwargs)
        return response


class _EventStream(httpx2.AsyncByteStream):
    """A stream of events; one that breaks has ended, and is opened again by the SDK where that can be done."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._stream:
                yield piece
        except httpx2.TransportError:
            return

    async def aclose(self) -> None:
        await self._stream.aclose()


def _refusal(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    """Return an answer of status 400 and above as the error that its call gets."""
    is_lost = response.status_code == http.HTTPStatus.NOT_FOUND and SESSION_HEADER in request.headers
    if not is_lost and response.status_code not in _REFUSED and _is_rpc_error(response):
        return response
    return _answer(request, response.status_code, _said(response), response.status_code, is_lost=is_lost)


def _answer(
    request: httpx2.Request, status: int, why: str, seen_status: int, *, is_lost: bool = False
) -> httpx2.Response:
    data = {HTTP_STATUS: seen_status, SESSION_LOST: is_lost}
    error = {"code": _INTERNAL_ERROR, "message": why, "data": data}
    return httpx2.Response(status, json={"jsonrpc": "2.0", "id": None, "error": error}, request=request)


def _is_rpc_error(response: httpx2.Response) -> bool:
    try:
        body = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict) and "jsonrpc" in body


def _said(response: httpx2.Response) -> str:
    text = " ".join(response.text.split())[:_BODY_SHOWN]
    status = f"HTTP {response.status_code} {response.reason_phrase}".rstrip()
    return f"{status}: {text}" if text else status
