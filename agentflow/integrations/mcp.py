"""MCP servers: their tools and prompts, over streamable HTTP or as a process, through the official SDK.

One session per server and worker, shared by all calls; it is opened by the first one, and opened again when it has ended. A server that hangs
or dies harms only its own calls: `ToolServerUnavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.durations import duration_ms
from agentflow.api.resources import Resource, ResourceType
from agentflow.api.tools import Tool, ToolMetadata, ToolPolicy, ToolType
from agentflow.errors import MissingPromptVariable, NotConfigured, ToolFailed, ToolServerUnavailable
from agentflow.integrations.header_values import SENT_VALUES, unsendable
from agentflow.integrations.mcp_auth import (
    ApiKeyAuth,
    Auth,
    BasicAuth,
    BearerTokenAuth,
    OAuthClientCredentials,
    Secrets,
)
from agentflow.integrations.mcp_policies import POLICY_FIELDS, policy_from

if TYPE_CHECKING:
    from mcp import Client, types

    from agentflow.integrations.mcp_session import Sessions

__all__ = ["ApiKeyAuth", "BasicAuth", "BearerTokenAuth", "MCPPrompt", "MCPServer", "MCPTool", "OAuthClientCredentials"]

logger = logging.getLogger("agentflow.integrations.mcp")

ReadPage = Callable[["Client", str | None], Awaitable[tuple[list[Any], str | None]]]
_EVENT_BYTES_MAX: Final = 32 * 2**20  # the SDK's own limit, 1 MiB, is less than an image
_PAGES_MAX: Final = 1000  # a server whose list has no end


class MCPPrompt(msgspec.Struct, frozen=True):
    """A prompt of a server.

    Attributes:
        name: Its name there.
        description: What it is for.
        arguments: Names of its arguments.
        required: Those of them that it cannot do without.
    """

    name: str
    description: str = ""
    arguments: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


class MCPServer(Resource):
    """A server of tools and prompts: at a URL (``endpoint``), or a process (``command``).

    Attributes:
        endpoint: URL of a server that speaks streamable HTTP.
        headers: Headers of each request.
        auth: Who asks: `BearerTokenAuth`, `BasicAuth`, `ApiKeyAuth`, `OAuthClientCredentials`, or a dict with their ``type`` and fields.
        command: Program of a server that speaks over its standard streams.
        args: Its arguments.
        env: Its environment, beside the few variables that are safe to hand on (PATH, HOME, …).
        cwd: Its directory.
        timeout: Longest opening of a session, and longest connecting; seconds, or a text with a unit.
        sse_read_timeout: Longest time without a byte of an answer that is awaited over HTTP.
        call_timeout: Longest time without an answer to a call, or progress of it.
        tools: Names of the tools to take; None: all.
        prefix: In front of the names that the model sees, where several servers have tools of one name.
        policies: How tools are called, by their names at the server: a `ToolPolicy`, or a dict with fields of one. Whether a tool
            that has no ``idempotent`` there is idempotent, the server says.
    """

    endpoint: str = ""
    headers: dict[str, str] = {}
    auth: Auth | dict[str, Any] | None = None
    command: str = ""
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    timeout: float | str = 30.0
    sse_read_timeout: float | str = 300.0
    call_timeout: float | str = 300.0
    tools: list[str] | None = None
    prefix: str = ""
    policies: dict[str, ToolPolicy | dict[str, Any]] = {}

    def __post_init__(self) -> None:
        wrong = self._problem()
        if wrong:
            raise NotConfigured(
                f"MCP server: {wrong}", expected="endpoint= (an http or https URL) or command= (a program)"
            )
        auth = self._credentials()
        if header := unsendable({**self.headers, **(auth.headers if auth else {})}):
            raise NotConfigured(
                f"MCP server '{self.label}': the value of header '{header}' cannot be sent",
                expected=SENT_VALUES,
                fix="look at auth= and headers=, and at what their references lead to",
            )
        self._timeout_s = _seconds("timeout", self.timeout)
        self._read_timeout_s = _seconds("sse_read_timeout", self.sse_read_timeout)
        self._call_timeout_s = _seconds("call_timeout", self.call_timeout)
        self._policies = {name: self._policy(name, policy) for name, policy in self.policies.items()}
        self._listed: dict[str, list[Any]] = {}  # what was discovered; emptied when it may have changed
        self._last: dict[str, list[Any]] = {}  # what was discovered last, for while the server does not answer
        self._listings: dict[str, asyncio.Task[list[Any]]] = {}  # what is being discovered
        self._running: set[asyncio.Task[list[Any]]] = set()  # these, and those that a change has overtaken
        self._missing: list[str] = []  # tools that were asked for and are not there, as last said
        self._sessions: Sessions | None = None

    @classmethod
    def resource_type(cls) -> ResourceType:
        """Return what kind of resource it is."""
        return ResourceType.MCP_SERVER

    async def open(self) -> None:
        """Look whether there is all that it needs; the session is opened by the first call."""
        if self._sessions is not None and self._sessions.is_closed:  # with the worker that had it before
            self._sessions = None
            self._forget()
        self._reach()

    async def close(self) -> None:
        """End the session, and the process where it is one; calls that wait get an error."""
        if self._sessions is not None:
            await self._sessions.close()
        if self._running:
            await asyncio.wait(self._running)

    async def list_tools(self) -> list[Tool]:
        """Return the tools of the server, without those that ``tools`` leaves out. They are asked for again when they have changed.

        While the server does not answer, they are what it said last.

        Raises:
            ToolServerUnavailable: The server does not answer, and never has.
            NotConfigured: It refuses the credentials, or cannot be started.
        """
        tools: list[MCPTool] = await self._discover("tools", self._read_tools)
        missing = sorted({*(self.tools or ()), *self.policies} - {tool.remote_name for tool in tools})
        if missing != self._missing:
            self._missing = missing
            if missing:
                logger.warning(
                    "mcp server %s: has no tool %s, which tools= or policies= names", self.label, ", ".join(missing)
                )
        return list(tools)

    async def list_prompts(self) -> list[MCPPrompt]:
        """Return the prompts of the server. They are asked for again when they have changed.

        Raises:
            ToolServerUnavailable, NotConfigured: As `list_tools`.
        """
        return list(await self._discover("prompts", self._read_prompts))

    async def get_prompt(self, prompt: str, /, **arguments: Any) -> list[ChatMessage]:  # noqa: ANN401 (whatever has a text)
        """Return the messages of a prompt; texts, images and resources as parts. Arguments that it does not have are left out.

        Raises:
            MissingPromptVariable: It cannot do without an argument that is not given.
            NotConfigured: The server has no such prompt, and as `list_tools`.
            ToolServerUnavailable, ToolFailed: The server does not answer, or says that it failed.
        """
        known = {one.name: one for one in await self.list_prompts()}
        if prompt not in known:
            raise NotConfigured(
                f"the MCP server '{self.label}' has no prompt '{prompt}'", expected=", ".join(known) or "it has none"
            )
        wanted = known[prompt]
        missing = [name for name in wanted.required if name not in arguments]
        if missing:
            raise MissingPromptVariable(missing[0], prompt, tuple(sorted(arguments)))
        from agentflow.integrations.mcp_content import argument_text, prompt_message

        # As prompts of an agent do: of the fields of an input, a prompt takes those that it knows.
        texts = {name: argument_text(value) for name, value in arguments.items() if name in wanted.arguments}

        async def send(client: Client, _: object) -> list[ChatMessage]:
            result = await client.get_prompt(prompt, texts)
            return [prompt_message(message) for message in result.messages]

        return await self._reach().ask(send)

    async def call_tool(self, name: str, arguments: dict[str, Any], *, meta: dict[str, Any] | None = None) -> str:
        """Call a tool.

        Args:
            name: Its name at the server, without the prefix.
            arguments: Its arguments.
            meta: Goes along as ``_meta``: an idempotency key, a trace context.

        Returns:
            What it says, as text for the model.

        Raises:
            ToolFailed: The tool failed; the text is the server's.
            ToolArgumentsInvalid: It does not take the arguments.
            ToolServerUnavailable: The server does not answer, or died in the call.
            NotConfigured: It refuses the credentials, or cannot be started.
        """
        sessions = self._reach()
        from agentflow.integrations.mcp_content import content_text, result_text

        async def send(client: Client, on_progress: Any) -> types.CallToolResult:  # noqa: ANN401 (the SDK's protocol)
            return await client.call_tool(name, arguments, progress_callback=on_progress, meta=meta)  # type: ignore[arg-type]

        result = await sessions.ask(send, name)
        if result.is_error:
            raise ToolFailed(sessions.secrets.mask(content_text(result.content)) or f"tool '{name}' failed")
        return sessions.secrets.mask(result_text(result))

    def policy_of(self, name: str) -> ToolPolicy | None:
        """Return how a tool is called, by the name that the model sees; None: ``policies`` does not say. The server is not asked."""
        policy = self._policies.get(name.removeprefix(self.prefix)) if name.startswith(self.prefix) else None
        return None if policy is None else policy[0]

    def offers(self, kind: str, name: str) -> bool | None:
        """Return whether it has one of its ``tools``, by the name that the model sees, or ``prompts``; None: it has to be asked.

        What it does not have by its configuration, it has not. For while it does not answer: it has what it had last, and the tools that
        its configuration names.
        """
        if kind == "tools":
            remote = name.removeprefix(self.prefix)
            if not name.startswith(self.prefix) or (self.tools is not None and remote not in self.tools):
                return False
            is_named = self.tools is not None or remote in self._policies
            is_known = any(tool.metadata.name == name for tool in self._last.get(kind, ()))
            return True if is_named or is_known else None
        return True if any(prompt.name == name for prompt in self._last.get(kind, ())) else None

    @property
    def label(self) -> str:
        """The server, for people: its name, or where it is."""
        return self.name or self.command or urlsplit(self.endpoint).netloc.rpartition("@")[2]

    def model_dump_json(self) -> str:
        """Return its arguments as JSON, for a stored plan, without values that may be secret."""
        shown = {
            "endpoint": self.endpoint,
            "command": self.command,
            "args": self.args,
            "cwd": self.cwd,
            "headers": sorted(self.headers),
            "env": sorted(self.env),
            "auth": type(self._credentials()).__name__ if self.auth else None,
            "tools": self.tools,
            "prefix": self.prefix,
            "policies": sorted(self.policies),
        }
        return msgspec.json.encode(shown, order="sorted").decode()

    def _problem(self) -> str:
        """Return what is wrong with the arguments; empty: nothing."""
        if bool(self.endpoint) == bool(self.command):
            return "it is reached in one of two ways"
        url = urlsplit(self.endpoint)
        if self.endpoint and (url.scheme not in {"http", "https"} or not url.netloc):
            return "its endpoint is no URL"
        if self.command and (self.auth or self.headers):
            return "auth and headers are those of an endpoint; a process gets its credentials by env"
        return ""

    def _policy(self, tool: str, given: ToolPolicy | dict[str, Any]) -> tuple[ToolPolicy, bool]:
        """Return how a tool is called, and whether that says if it is idempotent."""
        what = f"policies of the MCP server '{self.label}': tool '{tool}'"
        if self.tools is not None and tool not in self.tools:
            raise NotConfigured(f"{what} is none of tools=", expected=", ".join(self.tools) or "tools= is empty")
        try:
            return (given, True) if isinstance(given, ToolPolicy) else policy_from(given)
        except ValueError as error:
            raise NotConfigured(f"{what}: {error}", expected=POLICY_FIELDS) from None

    def _credentials(self) -> Auth | None:
        if not isinstance(self.auth, dict):
            return self.auth
        try:
            auth: Auth = msgspec.convert(self.auth, Auth)
        except msgspec.ValidationError as error:
            raise NotConfigured(
                f"auth of the MCP server '{self.label}': {error}", expected="type: bearer, basic, api_key or oauth"
            ) from None
        return auth

    def _reach(self) -> Sessions:
        """Return the way to the server, which is made once."""
        if self._sessions is None:
            try:
                from agentflow.integrations.mcp_session import Sessions
            except ModuleNotFoundError as error:
                raise NotConfigured(
                    f"MCP servers need a package that is not installed ({error.name})",
                    fix="pip install 'agentflow[mcp]'",
                ) from None
            auth = self._credentials()
            secrets = Secrets(auth, self.headers, self.env)
            connect = self._stdio(secrets) if self.command else self._http(auth, secrets)
            self._sessions = Sessions(
                self.label,
                connect,
                secrets,
                place=f"at {_shown_url(self.endpoint)}" if self.endpoint else "",
                open_timeout_s=self._timeout_s,
                call_timeout_s=self._call_timeout_s,
                on_change=self._forget,
            )
        return self._sessions

    def _stdio(self, secrets: Secrets) -> Callable[[], contextlib.AbstractAsyncContextManager[tuple[Any, Any]]]:
        from mcp import StdioServerParameters

        from agentflow.integrations.mcp_stdio import stdio

        parameters = StdioServerParameters(command=self.command, args=self.args, env=self.env, cwd=self.cwd)
        return functools.partial(stdio, parameters, self.label, secrets)

    def _http(
        self, auth: Auth | None, secrets: Secrets
    ) -> Callable[[], contextlib.AbstractAsyncContextManager[tuple[Any, Any]]]:
        from mcp.client.streamable_http import streamable_http_client

        from agentflow.integrations.mcp_http import ClientCredentials, HTTPClient

        credentials = ClientCredentials(auth, secrets) if isinstance(auth, OAuthClientCredentials) else None

        @contextlib.asynccontextmanager
        async def connect() -> AsyncIterator[tuple[Any, Any]]:
            async with (
                HTTPClient(
                    headers=self.headers,
                    auth=auth,
                    credentials=credentials,
                    timeout_s=self._timeout_s,
                    read_timeout_s=self._read_timeout_s,
                ) as client,
                streamable_http_client(
                    self.endpoint, http_client=client, max_sse_event_size=_EVENT_BYTES_MAX
                ) as streams,
            ):
                yield streams

        return connect

    def _forget(self) -> None:
        self._listed.clear()
        self._listings.clear()  # who waits for one gets it, but it says nothing of now

    async def _discover(self, what: str, read: ReadPage) -> list[Any]:
        """Return what the server has of a kind; from before, if it has not changed since. Those who ask at once share the answer."""
        if what in self._listed:
            return self._listed[what]
        listing = self._listings.get(what)
        if listing is None:
            listing = self._listings[what] = asyncio.create_task(self._read_all(read))
            self._running.add(listing)
            listing.add_done_callback(functools.partial(self._keep, what))
        try:
            return await asyncio.shield(listing)
        except ToolServerUnavailable:
            if what not in self._last:
                raise
            return self._last[what]  # its calls fail, and nothing else

    def _keep(self, what: str, listing: asyncio.Task[list[Any]]) -> None:
        self._running.discard(listing)
        is_right = not listing.cancelled() and listing.exception() is None
        if self._listings.get(what) is listing:
            del self._listings[what]
            if is_right:
                self._listed[what] = self._last[what] = listing.result()

    async def _read_all(self, read: ReadPage) -> list[Any]:
        listed: list[Any] = []
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page, cursor = await self._reach().ask(functools.partial(_read_page, read, cursor))
            listed += page
            if not cursor:
                return listed
        raise ToolFailed(
            f"the list of the MCP server '{self.label}' has no end", expected=f"at most {_PAGES_MAX} pages"
        )

    async def _read_tools(self, client: Client, cursor: str | None) -> tuple[list[MCPTool], str | None]:
        if not client.server_capabilities.tools:
            return [], None
        page = await client.list_tools(cursor=cursor)
        wanted = [tool for tool in page.tools if self.tools is None or tool.name in self.tools]
        return [self._tool(tool) for tool in wanted], page.next_cursor

    def _tool(self, tool: types.Tool) -> MCPTool:
        hints = tool.annotations
        is_unsafe = hints is not None and hints.idempotent_hint is False and not hints.read_only_hint
        policy, is_known = self._policies.get(tool.name, (ToolPolicy(), False))
        if not is_known:
            policy = msgspec.structs.replace(policy, idempotent=not is_unsafe)
        metadata = ToolMetadata(self.prefix + tool.name, tool.description or tool.title or "", tool.input_schema)
        return MCPTool(metadata=metadata, policy=policy, server=self, remote_name=tool.name)

    async def _read_prompts(self, client: Client, cursor: str | None) -> tuple[list[MCPPrompt], str | None]:
        if not client.server_capabilities.prompts:
            return [], None
        page = await client.list_prompts(cursor=cursor)
        return [_prompt(prompt) for prompt in page.prompts], page.next_cursor


class MCPTool(Tool):
    """A tool of a server.

    Attributes:
        server: The server.
        remote_name: Its name there.
    """

    server: MCPServer
    remote_name: str

    @classmethod
    def tool_type(cls) -> ToolType:
        """Return where it comes from."""
        return ToolType.MCP

    async def call(self, **arguments: Any) -> str:  # noqa: ANN401 (a tool's own)
        """Call the tool; see `MCPServer.call_tool`."""
        return await self.server.call_tool(self.remote_name, arguments)

    def bind(
        self, arguments: dict[str, Any], injected: dict[str, Any], *, meta: dict[str, Any] | None = None
    ) -> Callable[[], Any]:
        """Return the call with what a model says, and what it cannot say; ``meta`` goes along as ``_meta``."""

        async def call() -> str:
            return await self.server.call_tool(self.remote_name, {**arguments, **injected}, meta=meta)

        return call

    def model_dump_json(self) -> str:
        """Return what the model is told of it, for a stored plan."""
        return msgspec.json.encode(self.metadata, order="sorted").decode()


async def _read_page(read: ReadPage, cursor: str | None, client: Client, _: object) -> tuple[list[Any], str | None]:
    return await read(client, cursor)


def _prompt(prompt: types.Prompt) -> MCPPrompt:
    arguments = prompt.arguments or []
    return MCPPrompt(
        prompt.name,
        prompt.description or prompt.title or "",
        tuple(argument.name for argument in arguments),
        tuple(argument.name for argument in arguments if argument.required),
    )


def _shown_url(url: str) -> str:
    """Return a URL without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _seconds(name: str, value: float | str) -> float:
    seconds = duration_ms(value) / 1000 if isinstance(value, str) else float(value)
    if seconds <= 0:
        raise NotConfigured(f"{name}: {value!r}", expected="a time above 0")
    return seconds
