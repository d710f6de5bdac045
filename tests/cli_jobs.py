"""Jobs that `agentflow run` runs in a process of their own, beside a test that uses commands."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def running(place: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `job.yaml` of a directory, and kill it at the end; its words are in the file `log`."""
    command = [sys.executable, "-m", "agentflow", "run", "job.yaml", *arguments]
    with (place / "log").open("ab") as log:
        job = subprocess.Popen(command, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
        try:
            yield job
        finally:
            job.kill()
            job.wait()


def until(what: Callable[[], Any], place: Path) -> Any:
    """Wait until a question has an answer."""
    deadline = time.monotonic() + 30
    while not (found := what()):
        assert time.monotonic() < deadline, (place / "log").read_text()
        time.sleep(0.02)
    return found
