"""The server as a process of its own: see the package."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from agentflow.api.durations import duration_ms
from agentflow.errors import AgentflowError
from agentflow.testing.model_server.script import Answer, Reply, read_replies, read_script
from agentflow.testing.model_server.server import ModelServer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agentflow.testing.model_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default): any free one")
    parser.add_argument("--latency", type=duration_ms, default=0, help="before each answer, such as 50ms")
    parser.add_argument("--chunk-latency", type=duration_ms, default=0, help="before each piece of a stream")
    parser.add_argument("--no-requests", action="store_true", help="count requests only; for loads")
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--text", help="the same reply always; for loads")
    answer.add_argument("--script", metavar="FILE.py:FUNCTION", help="a function that takes a ModelRequest")
    answer.add_argument("--replies", metavar="FILE.json", type=Path, help="a list of replies and faults")
    return parser.parse_args()


def _answer(arguments: argparse.Namespace) -> Answer:
    if arguments.text is not None:
        return Reply(arguments.text)
    if arguments.script is not None:
        return read_script(arguments.script)
    return None if arguments.replies is None else read_replies(arguments.replies)


async def _serve(arguments: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    server = ModelServer(
        _answer(arguments),
        port=arguments.port,
        latency_ms=arguments.latency,
        chunk_latency_ms=arguments.chunk_latency,
        keep_requests=not arguments.no_requests,
    )
    async with server:
        print(server.url, flush=True)  # noqa: T201 (whoever started it reads this)
        await ended.wait()


def main() -> None:
    """Serve until a signal comes."""
    run = asyncio.run
    with contextlib.suppress(ImportError):  # with it, a third more answers per second
        from uvloop import run
    try:
        run(_serve(_arguments()))
    except (AgentflowError, OSError) as error:  # what the options name is not there, or the port is taken
        sys.exit(str(error))


if __name__ == "__main__":
    main()
