"""MCP servers of one test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from agentflow.integrations.mcp import MCPServer
from tests.mcp_servers import HTTPProcess, HTTPServer


@pytest.fixture
def http_server() -> Iterator[HTTPServer]:
    server = HTTPServer()
    yield server
    server.stop()


@pytest.fixture
def http_process() -> Iterator[HTTPProcess]:
    process = HTTPProcess()
    yield process
    process.kill()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., MCPServer]]:
    """Makes clients, which are closed at the end of the test; then no task of theirs is left."""
    servers: list[MCPServer] = []
    before = asyncio.all_tasks()

    def make(endpoint: str = "", **arguments: object) -> MCPServer:
        servers.append(MCPServer(endpoint=endpoint, **arguments))
        return servers[-1]

    yield make
    for server in servers:
        await server.close()
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()
