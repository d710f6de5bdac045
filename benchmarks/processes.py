"""Whole processes: import and start."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 30


def _elapsed_ms(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)
    return (time.perf_counter() - began) * 1000


def import_ms(factor: float) -> float:  # noqa: ARG001 (one signature)
    """Import agentflow, beyond the start of the interpreter."""
    return _elapsed_ms("-c", "import agentflow") - _elapsed_ms("-c", "pass")


@contextlib.contextmanager
def _job(directory: str, *settings: str) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Start the quickstart over one record; give the process and the ms from its start to its first visible output."""
    line = (ROOT / "examples/data/product_reviews.jsonl").read_bytes().splitlines(keepends=True)[0]
    Path(directory, "one.jsonl").write_bytes(line)
    sets = [f"sink.jsonl.path={directory}/out", f"state.dir={directory}/state", *settings]
    flags = [part for one_set in sets for part in ("--set", one_set)]
    command = [sys.executable, "-m", "agentflow", "run", "configs/quickstart.yaml", *flags]
    with Path(directory, "log").open("wb") as log:
        began = time.perf_counter()
        job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT)
    try:
        assert job.stdin is not None
        job.stdin.write(line)
        job.stdin.flush()
        while not list(Path(directory, "out").glob("part-*")):
            is_over = job.poll() is not None and not list(Path(directory, "out").glob("part-*"))
            assert not is_over, f"the job made no output: {Path(directory, 'log').read_text()}"
            assert time.perf_counter() - began < DEADLINE_S, "no output in time"
            time.sleep(0.002)
        yield job, (time.perf_counter() - began) * 1000
        job.stdin.close()
        assert job.wait(DEADLINE_S) == 0, f"the job failed: {Path(directory, 'log').read_text()}"
    finally:
        job.kill()
        job.wait()


def start_ms(factor: float) -> float:  # noqa: ARG001 (one signature)
    """A one-record job through the command line: from process start to its first visible output."""
    with tempfile.TemporaryDirectory() as directory, _job(directory, f"source.jsonl.path={directory}/one.jsonl") as job:
        return job[1]
