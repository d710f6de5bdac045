"""An MCP server as a process of ours: its standard streams are the session, its standard error goes to the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from mcp import StdioServerParameters, stdio_client

if TYPE_CHECKING:
    from agentflow.integrations.mcp_auth import Secrets

logger = logging.getLogger("agentflow.integrations.mcp")

_LINE_BYTES_MAX = 8192


class _LogLines(asyncio.Protocol):
    """Logs what it receives, line by line; a longer line is logged in pieces."""

    def __init__(self, label: str, secrets: Secrets) -> None:
        self._label = label
        self._secrets = secrets
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._log(line)
        if len(self._rest) > _LINE_BYTES_MAX:
            self._log(self._rest)
            self._rest = b""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's)
        self._log(self._rest)

    def _log(self, line: bytes) -> None:
        if text := line.decode(errors="replace").rstrip():
            logger.info("mcp server %s: %s", self._label, self._secrets.mask(text))


@contextlib.asynccontextmanager
async def stdio(parameters: StdioServerParameters, label: str, secrets: Secrets) -> AsyncIterator[tuple[Any, Any]]:
    """Run the server; its environment is `parameters.env` and the few variables that the SDK takes for safe."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as read_end, os.fdopen(write_fd, "w") as write_end:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: _LogLines(label, secrets), read_end)
        try:
            async with stdio_client(parameters, errlog=write_end) as streams:
                write_end.close()  # the process has its own: it ends with it
                yield streams
        finally:
            transport.close()
