"""`agentflow worker --processes N`: N members of the group under one supervisor.

```
            spawn ─► running ──► exit 2: wrong configuration, all stop ─► 2
              ▲         ├──────► exit otherwise: again, after a back-off; too often ─► all stop ─► 1
              └─backoff─┘
            SIGTERM, SIGINT: passed on to all; the supervisor ends behind the last one
```

Members are processes with an interpreter each, because one interpreter runs on one core. Their log lines go where the
supervisor's go, with the number of the process. A member ends by itself when the supervisor is gone: its standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from agentflow.cli.output import EXIT_DONE, EXIT_JOB_FAILED, EXIT_WRONG_USE

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.runtime.settings import RestartSettings

_HEALTHY_S = 60  # a member that lived so long starts its back-off anew
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def supervise(chosen: argparse.Namespace, job_file: JobFile) -> int:
    """Run the members and return the exit status."""
    commands = [_command(chosen, job_file, number) for number in range(chosen.processes)]
    return asyncio.run(_Supervisor(commands, job_file.settings.restart).run())


def _command(chosen: argparse.Namespace, job_file: JobFile, number: int) -> list[str]:
    """Return the command of one member: the supervisor's own, with a name, a port and a file of metrics for each."""
    settings = list(chosen.settings)
    kafka, admin, metrics_file = job_file.settings.kafka, job_file.settings.admin, job_file.settings.metrics.file
    if kafka.instance_id:
        settings.append(f"kafka.instance-id={kafka.instance_id}-{number}")
    if admin.port:
        settings.append(f"admin.port={admin.port + number}")
    if metrics_file:
        path = PurePath(metrics_file)
        settings.append(f"metrics.file={path.with_stem(f'{path.stem}-{number}')}")
    command = [sys.executable, "-m", "agentflow", "worker", chosen.config, "--process", str(number)]
    for setting in settings:
        command += ["--set", setting]
    for flag, value in (
        ("--profile", chosen.profile),
        ("--log-format", chosen.log_format),
        ("--log-level", chosen.log_level),
    ):
        command += [flag, value] if value else []
    return [*command, *(["--no-uvloop"] if chosen.no_uvloop else [])]


class _Supervisor:
    def __init__(self, commands: Sequence[Sequence[str]], restart: RestartSettings) -> None:
        self._commands = commands
        self._restart = restart
        self._members: dict[int, asyncio.subprocess.Process] = {}
        self._received: signal.Signals | None = None
        self._stopping = asyncio.Event()
        self._status = EXIT_DONE

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._receive, number)
        await asyncio.gather(*(self._keep(number) for number in range(len(self._commands))))
        if self._status == EXIT_DONE and self._received is not None:
            return 128 + self._received
        return self._status

    def _receive(self, number: signal.Signals) -> None:
        self._received = self._received or number
        self._stop(number)

    def _stop(self, number: signal.Signals) -> None:
        self._stopping.set()
        for member in self._members.values():
            with contextlib.suppress(ProcessLookupError):
                member.send_signal(number)

    def _fail(self, status: int) -> None:
        """End all members with an error; wrong configuration outweighs a failure."""
        self._status = max(self._status, status)
        if not self._stopping.is_set():
            self._stop(signal.SIGTERM)

    async def _keep(self, number: int) -> None:
        """Run one member, again and again, until all stop."""
        from agentflow.observability.logs import log_event

        loop, attempt = asyncio.get_running_loop(), 0
        while not self._stopping.is_set():
            began = loop.time()
            member = await asyncio.create_subprocess_exec(
                *self._commands[number], stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
            self._members[number] = member
            if self._stopping.is_set():
                member.send_signal(signal.SIGTERM)
            status = await member.wait()
            del self._members[number]
            if self._stopping.is_set():
                if status not in (EXIT_DONE, 128 + signal.SIGTERM, 128 + signal.SIGINT):
                    self._fail(EXIT_JOB_FAILED)
                return
            if status == EXIT_WRONG_USE:
                self._fail(EXIT_WRONG_USE)
                return
            attempt = 1 if loop.time() - began > _HEALTHY_S else attempt + 1
            if self._restart.strategy == "none" or attempt > self._restart.attempts:
                log_event("process given up", "error", process=number, status=status, attempts=attempt)
                self._fail(EXIT_JOB_FAILED)
                return
            delay_ms = self._restart.delay_before(attempt)
            log_event("process restarts", "warning", process=number, status=status, delay=f"{delay_ms / 1000:g}s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_ms / 1000):
                    await self._stopping.wait()
