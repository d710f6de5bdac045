"""Sessions with one MCP server.

Owns: the session with the server, at most one at a time, over which all calls go at once; its process or its HTTP connections; when it is
opened again. A session of the SDK belongs to the task that opened it (its cancel scopes do), so each has a task of its own. Calls only ask
its client, from their own tasks: when a call is cancelled or late, the SDK tells the server, and the session goes on.

    first call, or the last session is over        ended by the server, by `end`, by a failure
        │                                              │
        ▼                                              ▼
    back-off → opening (at most `open_timeout_s`) → open → closing → over
                  └── failed: those who wait for it get the reason ─────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio
from mcp import Client, MCPError, types
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

from agentflow.errors import AgentflowError, NotConfigured, ToolArgumentsInvalid, ToolFailed, ToolServerUnavailable
from agentflow.integrations.mcp_content import remove_wrong_tools
from agentflow.integrations.mcp_http import HTTP_STATUS, SESSION_LOST

if TYPE_CHECKING:
    from agentflow.integrations.mcp_auth import Secrets

logger = logging.getLogger("agentflow.integrations.mcp")
AnswerT = TypeVar("AnswerT")
Connect = Callable[[], AbstractAsyncContextManager[tuple[Any, Any]]]
"""Opens the two streams of a session."""

_BACK_OFF_MIN_S: Final = 0.1
_BACK_OFF_MAX_S: Final = 10.0
_CLOSING_S: Final = 5.0  # that a session has to say goodbye, before it is cut
_NOT_AVAILABLE = {types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT}
_PASSING_STATUS = {0, 408, 429}  # 0: no answer; as is every status from 500
_REFUSING_STATUS = {401, 403}
_NOWHERE_STATUS = {404, 405, 410}


class _Watched:
    """A stream of what the server sends; it is read ahead of the SDK, and its end is noticed also when nobody waits for an answer."""

    def __init__(
        self,
        stream: Any,  # noqa: ANN401 (of the SDK, by protocol)
        on_end: Callable[[], None],
        read: Callable[[Any], None],
    ) -> None:
        self._stream = stream
        self._on_end = on_end
        self._read = read

    @property
    def last_context(self) -> Any:  # noqa: ANN401 (as above)
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:  # noqa: ANN401 (as above)
        try:
            received = await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._on_end()
            raise
        self._read(received)
        return received

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 (as above)
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Session:
    """One session, from its opening to its end.

    Attributes:
        ready: Done when it is open, or never will be.
        client: Asks the server; None: it is not open.
        failure: Makes the error of those who wait for it; None: it is open, or was.
        is_over: Nobody may ask it any more; its task may still be closing.
        task: What owns it.
    """

    def __init__(self, sessions: Sessions, back_off_s: float) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.client: Client | None = None
        self.failure: Callable[[], AgentflowError] | None = None
        self.is_over = False
        self._sessions = sessions
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()
        context = contextvars.Context()  # not that of the step that happens to call first
        self.task = asyncio.create_task(
            self._own(back_off_s), name=f"mcp session with {sessions.label}", context=context
        )

    def end(self, why: str) -> None:
        """End it: say goodbye where it is open, give up where it opens."""
        self._fail(lambda: ToolServerUnavailable(self._sessions.label, why))
        if not self.is_over:
            self.is_over = True
            self._sessions.on_change()  # whoever answers next may have other tools
        self._ended.set()
        if self.client is None:
            self._scope.cancel()

    def cut(self) -> None:
        """End it without a goodbye."""
        self._scope.cancel()

    def _fail(self, failure: Callable[[], AgentflowError]) -> None:
        if not self.ready.done():
            self.failure = failure
            self.ready.set_result(None)

    async def _own(self, back_off_s: float) -> None:
        sessions = self._sessions
        late = None
        try:
            with self._scope:
                await anyio.sleep(back_off_s)
                # Not the scope's deadline: who waits is told now, and a process may take seconds to end.
                late = asyncio.get_running_loop().call_later(
                    sessions.open_timeout_s, self.end, f"not open after {sessions.open_timeout_s:g} s"
                )
                async with (
                    Client(
                        self._transport(),
                        message_handler=self._on_message,
                        client_info=types.Implementation(name="agentflow", version="1"),
                        cache=None,  # what is listed is kept by who lists it
                    ) as client,
                    anyio.create_task_group() as tasks,
                ):
                    late.cancel()
                    if not self.is_over:
                        self.client = client
                        self.ready.set_result(None)
                        tasks.start_soon(self._listen, client)
                    await self._ended.wait()
                    tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 (whatever ends a session harms the calls of this server only)
            why = _first(error)
            self._fail(lambda: sessions.translated(why))
            logger.info("mcp server %s: session ended by %s", sessions.label, sessions.secrets.mask(repr(why)))
        finally:
            if late is not None:
                late.cancel()
            self.end("its session has ended")
            sessions.on_over(self)

    @contextlib.asynccontextmanager
    async def _transport(self) -> AsyncIterator[tuple[Any, Any]]:
        async with self._sessions.connect() as (received, sent):
            yield _Watched(received, self._on_end, self._read), sent

    def _read(self, received: Any) -> None:  # noqa: ANN401 (of the SDK: a message, or an error)
        """Take the tools out of a list that are none: the SDK would refuse all of them."""
        result = getattr(getattr(received, "message", None), "result", None)
        if self.client is not None and isinstance(result, dict):
            for tool, why in remove_wrong_tools(result, self.client.protocol_version):
                label, mask = self._sessions.label, self._sessions.secrets.mask
                logger.warning("mcp server %s: tool %s is left out: %s", label, mask(tool), mask(why))

    def _on_end(self) -> None:
        self.end("the server closed the connection")

    async def _on_message(self, message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification | types.PromptListChangedNotification):
            self._sessions.on_change()
        elif isinstance(message, Exception):
            label, mask = self._sessions.label, self._sessions.secrets.mask
            logger.warning("mcp server %s: sends what is no message: %s", label, mask(str(message)))

    async def _listen(self, client: Client) -> None:
        """Ask for change notifications, which come to `_on_message`. Servers before 2026-07 send them unasked."""
        back_off_s = _BACK_OFF_MIN_S
        while True:
            began_s = anyio.current_time()
            try:
                async with client.listen(tools_list_changed=True, prompts_list_changed=True) as changes:
                    self._sessions.on_change()  # there may have been some while nobody listened
                    async for _ in changes:
                        pass
            except ListenNotSupportedError:
                return
            except SubscriptionLost:
                pass
            except MCPError as error:
                if not _is_passing(error):
                    logger.debug("mcp server %s: tells no changes: %s", self._sessions.label, error.code)
                    return
            if anyio.current_time() - began_s > _BACK_OFF_MAX_S:  # a stream that is cut at once is no success
                back_off_s = _BACK_OFF_MIN_S
            await anyio.sleep(back_off_s)
            back_off_s = min(back_off_s * 2, _BACK_OFF_MAX_S)


class Sessions:
    """The way to a server: opens a session for the first call, and another one when it is over.

    Args:
        label: The server, for errors and logs.
        connect: Opens the streams of a session.
        secrets: What errors and logs must not say.
        place: Where the server is, for errors; empty: it is a process.
        open_timeout_s: Longest opening.
        call_timeout_s: Longest time without an answer to a call, or progress of it, the opening included.
        on_change: Called when tools or prompts of the server may have changed.

    Attributes:
        is_closed: Nobody may ask any more.
    """

    def __init__(
        self,
        label: str,
        connect: Connect,
        secrets: Secrets,
        *,
        place: str,
        open_timeout_s: float,
        call_timeout_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.label = label
        self.connect = connect
        self.secrets = secrets
        self.open_timeout_s = open_timeout_s
        self.on_change = on_change
        self._place = place
        self._call_timeout_s = call_timeout_s
        self._session: Session | None = None
        self._running: set[Session] = set()  # the current one, and those that are closing
        self._failures = 0  # sessions that ended since the last answer
        self.is_closed = False

    async def ask(
        self, send: Callable[[Client, Callable[..., Awaitable[None]]], Awaitable[AnswerT]], tool: str = ""
    ) -> AnswerT:
        """Ask the server.

        Args:
            send: Asks by a client; progress is to be reported to its second argument.
            tool: The tool that is called.

        Raises:
            ToolServerUnavailable: No connection, no answer in time, or the server died in the call.
            NotConfigured: The server refuses the credentials, there is none at the URL, or its command cannot be run.
            ToolArgumentsInvalid: It does not take the arguments.
            ToolFailed: It says another error.
        """
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(self._call_timeout_s)

        async def on_progress(*_: object) -> None:
            with contextlib.suppress(RuntimeError):  # it comes when the call has ended
                limit.reschedule(loop.time() + self._call_timeout_s)

        try:
            async with limit:
                return await self._ask_known(lambda client: send(client, on_progress))
        except TimeoutError:
            raise ToolServerUnavailable(self.label, f"no answer in {self._call_timeout_s:g} s") from None
        except (MCPError, RuntimeError, ValueError) as error:  # what the SDK says of answers that are wrong
            raise self.translated(error, tool) from None

    async def close(self) -> None:
        """End all sessions; nothing of them is left when it returns."""
        self.is_closed = True
        tasks = {session.task for session in self._running}
        for session in list(self._running):
            session.end("it is closed")
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSING_S)
        for session in list(self._running):
            session.cut()
        if tasks:
            await asyncio.wait(tasks)

    def on_over(self, session: Session) -> None:
        """Take note of the end of a session."""
        self._running.discard(session)
        self._failures += 1

    def translated(self, error: BaseException, tool: str = "") -> AgentflowError:
        """Return an error of the SDK as one of ours, without secrets."""
        text = self.secrets.mask(str(error)) or type(error).__name__
        if isinstance(error, MCPError):
            status = _status(error)
            if status in _REFUSING_STATUS:
                # Not `credentials: HTTP 401`, which rules of redaction take for one.
                return NotConfigured(
                    f"the MCP server '{self.label}' refuses the credentials with {text}",
                    fix="look at auth= and headers=",
                )
            if _is_passing(error):
                return ToolServerUnavailable(self.label, text)
            if status in _NOWHERE_STATUS:
                return NotConfigured(
                    f"there is no MCP server '{self.label}' {self._place}: {text}", fix="look at endpoint="
                )
            if status is None and error.code == types.INVALID_PARAMS and tool:
                return ToolArgumentsInvalid(tool, text)
            # The model knows which tool it has called, and reads what the server says of it.
            return ToolFailed(text if tool and status is None else f"the MCP server '{self.label}' says: {text}")
        if isinstance(error, FileNotFoundError | PermissionError):
            return NotConfigured(
                f"the MCP server '{self.label}' cannot be started: {text}", fix="look at command= and cwd="
            )
        if isinstance(error, RuntimeError | ValueError):
            return ToolFailed(f"the MCP server '{self.label}' gives a wrong answer: {text}")
        return ToolServerUnavailable(self.label, text)

    async def _ask_known(self, send: Callable[[Client], Awaitable[AnswerT]]) -> AnswerT:
        """Ask; once more where the server does not know the session any more: it has not looked at the request."""
        session = await self._open()
        assert session.client is not None
        try:
            answer = await send(session.client)
        except MCPError as error:
            if not _is_session_lost(error):
                raise
            session.end("the server does not know the session any more")
            session = await self._open()
            assert session.client is not None
            answer = await send(session.client)
        self._failures = 0
        return answer

    async def _open(self) -> Session:
        if self.is_closed:
            raise ToolServerUnavailable(self.label, "it is closed")
        session = self._session
        if session is None or session.is_over:
            wait_s = _BACK_OFF_MIN_S * math.pow(2, min(self._failures, 10) - 1) if self._failures else 0.0
            session = self._session = Session(self, min(wait_s, _BACK_OFF_MAX_S))
            self._running.add(session)
        await asyncio.shield(session.ready)
        if session.failure is not None:
            raise session.failure()
        return session


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _status(error: MCPError) -> int | None:
    """Return the HTTP status behind an error, 0 where there was no answer; None: it is the server's own word."""
    return error.data.get(HTTP_STATUS) if isinstance(error.data, dict) else None


def _is_passing(error: MCPError) -> bool:
    status = _status(error)
    if status is None:
        return error.code in _NOT_AVAILABLE
    return status in _PASSING_STATUS or status >= 500 or _is_session_lost(error)


def _is_session_lost(error: MCPError) -> bool:
    return isinstance(error.data, dict) and error.data.get(SESSION_LOST) is True
