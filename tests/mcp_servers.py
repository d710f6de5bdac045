"""MCP servers built with the official SDK, and what can go wrong with them.

`HTTPServer` runs in a thread of the tests; ``python tests/mcp_servers.py stdio`` is a process that speaks over its standard streams,
``python tests/mcp_servers.py http PORT`` one that may be killed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import anyio
import uvicorn
from mcp import types
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import AssistantMessage, Message, UserMessage
from mcp.types import ToolAnnotations

SCRIPT = Path(__file__).resolve()
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
UNKNOWN = {"code": -32601, "message": "Method not found"}
Asgi = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Hung:
    """Calls that hang: how many have begun and were cancelled, across threads; `release` lets them go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.release = anyio.Event()


def build(hung: Hung) -> MCPServer:
    """Return a server with tools and prompts."""
    server = MCPServer("shop", instructions="sells things")
    add_tools(server, hung)
    add_troubles(server)
    add_prompts(server)
    return server


def add_tools(server: MCPServer, hung: Hung) -> None:
    @server.tool(structured_output=False)
    def echo(text: str) -> str:
        """Say it again."""
        return text

    @server.tool(annotations=ToolAnnotations(idempotent_hint=False))
    def order(item: str, count: int = 1) -> dict[str, Any]:
        """Order something."""
        return {"item": item, "count": count}

    @server.tool(structured_output=False)
    def picture() -> list[Any]:
        """Show it."""
        return ["a pixel", Image(data=PIXEL, format="png"), "that was it"]

    @server.tool(structured_output=False)
    def meta(ctx: Context) -> str:
        """Say what came along."""
        return json.dumps(dict(ctx.request_context.meta or {}), default=str)

    @server.tool(structured_output=False)
    def environment() -> str:
        """Say what the process was given, and where it runs."""
        return json.dumps({**os.environ, "cwd": str(Path.cwd()), "pid": os.getpid()})

    @server.tool(structured_output=False)
    async def hang() -> str:
        """Never answer."""
        hung.begun.release()
        try:
            await hung.release.wait()
        except anyio.get_cancelled_exc_class():
            hung.cancelled.release()
            raise
        return "released"

    @server.tool(structured_output=False)
    async def work(steps: int, step_s: float, ctx: Context) -> str:
        """Take some time, and tell."""
        for step in range(steps):
            await anyio.sleep(step_s)
            await ctx.report_progress(step, steps)
        return "worked"


def add_troubles(server: MCPServer) -> None:
    @server.tool(structured_output=False)
    def fails(text: str) -> str:
        """Fail."""
        raise ToolError(text)

    @server.tool(structured_output=False)
    def dies() -> str:
        """Take the process along."""
        os._exit(3)

    @server.tool(structured_output=False)
    def complains(text: str) -> str:
        """Write to standard error."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
        return "done"

    @server.tool(structured_output=False)
    async def grow(name: str, ctx: Context) -> str:
        """Have one more tool and one more prompt."""
        server.add_tool(lambda: name, name=name, description="new", structured_output=False)
        server.prompt(name=name)(lambda: f"about {name}")
        await ctx.notify_tools_changed()
        await ctx.notify_prompts_changed()
        if ctx.request_context.protocol_version < "2026":  # who is told by the session itself
            await ctx.request_context.session.send_tool_list_changed()
            await ctx.request_context.session.send_prompt_list_changed()
        return "grown"


def add_prompts(server: MCPServer) -> None:
    @server.prompt()
    def about(input: str) -> str:  # noqa: A002 (what an input that is a text is called)
        """Say something of it."""
        return f"about {input}"

    @server.prompt()
    def review(product: str, tone: str = "friendly") -> list[Message]:
        """Review a product."""
        resource = types.TextResourceContents(uri="shop://terms", mime_type="text/plain", text="no returns")
        manual = types.BlobResourceContents(
            uri="shop://manual", mime_type="application/pdf", blob=base64.b64encode(b"%PDF").decode()
        )
        return [
            UserMessage(f"review {product}, {tone}"),
            AssistantMessage("show me"),
            UserMessage(Image(data=PIXEL, format="png")),
            UserMessage(types.EmbeddedResource(type="resource", resource=resource)),
            UserMessage(types.EmbeddedResource(type="resource", resource=manual)),
        ]


class Guarded:
    """An MCP server behind HTTP: counts, lets in who may, gives tokens, and answers as it is told to.

    Attributes:
        may: Whether a request may come in, by its headers; the answer is 401 if not.
        seen: Methods of the requests that came in, as JSON-RPC has them.
        tokens: How many tokens were given.
        token: What each of them is; empty: its number.
        is_old: Speaks the protocol of before 2026 only.
        trouble: Status and body of an answer that is given to a method instead.
        cut: Content type of an answer to a method that breaks in the middle.
        expires_in: Lifetime of the tokens.
    """

    def __init__(self, app: Asgi) -> None:
        self._app = app
        self.may: Callable[[dict[str, str]], bool] = lambda _: True
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.tokens = 0
        self.token = ""
        self.forms: list[tuple[str, dict[str, list[str]]]] = []
        self.token_status = 200
        self.is_old = False
        self.trouble: dict[str, tuple[int, bytes]] = {}
        self.cut: dict[str, bytes] = {}
        self.expires_in = 3600

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if scope["path"] == "/token":
            await self._token(headers, await body_of(receive), send)
            return
        if not self.may(headers):
            await answer(send, 401, f"who are you? not {headers.get('authorization')}".encode())
            return
        if scope["method"] != "POST":
            self.seen.append(scope["method"])
            await self._app(scope, receive, send)
            return
        body = await body_of(receive)
        method = json.loads(body).get("method", "answer")
        self.seen.append(method)
        self.headers.append(headers)
        if method in self.trouble:
            await answer(send, *self.trouble[method])
        elif method in self.cut:
            await answer(send, 200, b'{"jsonrpc": ', kind=self.cut[method], is_whole=False)
            raise ConnectionAbortedError
        elif self.is_old and method == "server/discover":
            await answer(send, 400, b"what?")
        else:
            await self._app(scope, again(body, receive), send)

    async def _token(self, headers: dict[str, str], body: bytes, send: Any) -> None:
        self.forms.append((headers.get("authorization", ""), parse_qs(body.decode())))
        if self.token_status != 200:
            await answer(send, self.token_status, b'{"error": "invalid_client"}')
            return
        self.tokens += 1
        token = {
            "access_token": self.token or f"token-{self.tokens}",
            "token_type": "Bearer",
            "expires_in": self.expires_in,
        }
        await answer(send, 200, json.dumps(token).encode())


async def body_of(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def again(body: bytes, receive: Any) -> Any:
    """Return a `receive` that gives a body that was read."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Any:
        return pending.pop() if pending else await receive()

    return give


async def answer(
    send: Any, status: int, body: bytes, *, kind: bytes = b"application/json", is_whole: bool = True
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body, "more_body": not is_whole})


class HTTPServer:
    """A server over streamable HTTP, in a thread.

    Attributes:
        guard: What stands before it.
        hung: Its calls that hang.
        is_told_of_cancelling: Whether it stops a call that its client has given up.
    """

    def __init__(self, port: int = 0, *, json_response: bool = False) -> None:
        self.hung = Hung()
        self.is_told_of_cancelling = not json_response  # such a server of the SDK waits for its tool in any case
        self.server = build(self.hung)
        self.guard = Guarded(self.server.streamable_http_app(json_response=json_response))
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        config = uvicorn.Config(
            self.guard, lifespan="on", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=0
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._uvicorn.serve([self.socket]))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._uvicorn.server_state.connections)

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(10)
        self.socket.close()
        assert not self._thread.is_alive()


class HTTPProcess:
    """A server over streamable HTTP, in a process; `kill` it, `start` it again on its port."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "http", str(self.port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"listening\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/mcp"


def list_wrong_tools() -> None:
    """Be a server without the SDK, which would not say that it has tools that are none."""
    tools = [
        {"name": "bad", "description": os.environ["SHOP_TOKEN"]},
        {"name": "good", "inputSchema": {"type": "object"}},
    ]
    for line in sys.stdin:
        request = json.loads(line)
        results = {
            "initialize": {
                "protocolVersion": request.get("params", {}).get("protocolVersion"),
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "wrong", "version": "1"},
            },
            "tools/list": {"tools": tools},
        }
        if "id" in request:
            said = {"result": results[request["method"]]} if request["method"] in results else {"error": UNKNOWN}
            print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **said}), flush=True)


def serve(kind: str, *arguments: str) -> None:
    """Be a server process."""
    server = build(Hung())
    if kind == "stdio":
        server.run("stdio")
        return
    if kind == "wrong":
        list_wrong_tools()
        return
    if kind == "mute":  # reads, and never answers
        sys.stdin.read()
        return
    with socket.create_server(("127.0.0.1", int(arguments[0]))) as listening:
        print("listening", flush=True)
        uvicorn.Server(uvicorn.Config(server.streamable_http_app(), ws="none", log_level="critical")).run([listening])


if __name__ == "__main__":
    serve(*sys.argv[1:])
