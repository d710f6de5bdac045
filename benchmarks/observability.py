"""What it costs to look at a job: records of the stateful workload per second of processor time, with and without, in pairs of one run.

The machine's minutes differ by more than what is measured. So it is processor time that counts, which other processes take little
from; that of exporters' threads is in it. Each pair stands for itself, every other one begins with the other half, and the median of
their ratios counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from agentflow import Agent, EventType, JobSettings, StateSettings
from agentflow.core.records import Record
from agentflow.environment.openers import new_event_loop, state_opener
from agentflow.environment.telemetry import Telemetry
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.settings import MetricsSettings, OtlpSettings, TracingSettings
from benchmarks.workloads import CountingSink, PreparedSource, check_outputs, stateful

_KEYS = 100
_PAIRS = 9
Settings = Callable[[Path], JobSettings]


class _Source(PreparedSource):
    """Knows when it was read first, in processor time: what is made before that is made once."""

    began_cpu_s = 0.0

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next slice."""
        self.began_cpu_s = self.began_cpu_s or time.process_time()
        return await super().fetch(records_max)


def rate(settings: JobSettings, records: int) -> float:
    """Run the stateful workload as a command does, with what its settings ask for; return records per second of processor time."""
    source, sink = _Source(records, _KEYS), CountingSink()
    agent = Agent("stateful").add_action("act", [EventType.InputEvent], stateful)
    stage = AgentStage(AgentPlan.from_agent(agent), "user")

    async def run() -> None:
        telemetry = Telemetry(settings)
        job = Job(
            JobSpec(
                settings,
                (stage,),
                lambda: source,
                lambda: {"sink": sink},
                state_opener(settings),
                observers=telemetry.observers(0),
                metrics=telemetry.registry,
                on_end=telemetry.close,
            )
        )
        telemetry.watch(job)
        await job.run()

    with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())
    took = time.process_time() - source.began_cpu_s
    check_outputs("stateful", sink.outputs, records)
    return records / took


def ratio(on: Settings, factor: float) -> float:
    """Return the rate with what is measured as a share of the rate without, the median of pairs."""

    def one(make: Settings) -> float:
        with tempfile.TemporaryDirectory() as directory:
            return rate(make(Path(directory)), int(150_000 * factor))

    ratios = []
    one(on)  # warms up what is made once in a process
    for pair in range(_PAIRS):
        if pair % 2:
            watched, plain = one(on), one(off)
        else:
            plain, watched = one(off), one(on)
        ratios.append(watched / plain)
    return median(ratios)


def off(directory: Path) -> JobSettings:
    """Nothing looks."""
    return JobSettings(state=StateSettings(dir=str(directory / "state")))


def _with_metrics(directory: Path) -> JobSettings:
    """Metrics, written to a file each second."""
    metrics = MetricsSettings(file=str(directory / "metrics.json"), interval_ms=1_000)
    return JobSettings(state=StateSettings(dir=str(directory / "state")), metrics=metrics)


def _with_traces(sample_ratio: float, endpoint: str, directory: Path) -> JobSettings:
    tracing = TracingSettings(enabled=True, sample_ratio=sample_ratio)
    return JobSettings(
        state=StateSettings(dir=str(directory / "state")), tracing=tracing, otlp=OtlpSettings(endpoint=endpoint)
    )


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """Run a collector as a process of its own, which takes everything and does nothing with it; return its base URL."""
    command = [sys.executable, "-c", _COLLECTOR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


_COLLECTOR = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def off_ratio(factor: float) -> float:
    """Nothing against nothing: how much of the other numbers is the machine."""
    return ratio(off, factor)


def metrics_ratio(factor: float) -> float:
    """Metrics on against off."""
    return ratio(_with_metrics, factor)


def tracing_ratio(sample_ratio: float, factor: float) -> float:
    """Traces of a share of the runs, sent to a collector, against none."""
    with _collector() as endpoint:
        return ratio(partial(_with_traces, sample_ratio, endpoint), factor)
