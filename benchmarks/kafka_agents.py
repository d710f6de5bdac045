"""The agents of the Kafka benchmark, as a job file names them."""

import itertools
import time
from statistics import median
from typing import Any

from agentflow import Agent, EventType, OutputEvent, RunnerContext
from benchmarks.durable import STEPS as STEPS_PER_RUN
from benchmarks.durable import call
from benchmarks.workloads import stateful, trivial, waiting

TRIVIAL = Agent("trivial").add_action("act", [EventType.InputEvent], trivial)
STATEFUL = Agent("stateful").add_action("act", [EventType.InputEvent], stateful)
ASYNC = Agent("async").add_action("act", [EventType.InputEvent], waiting)


async def steps(event: Any, ctx: RunnerContext) -> None:
    """Five durable steps."""
    for number in range(STEPS_PER_RUN):
        await ctx.durable_execute_async(call, ctx.run_id, number)
    ctx.send_event(OutputEvent({"id": event.input["id"]}))


async def step_times(event: Any, ctx: RunnerContext) -> None:
    """Many durable steps, one after the other; the output has their median in ms, without the first ones."""
    entered: list[float] = []

    async def timed(number: int) -> str:  # noqa: ARG001 (it is part of the step)
        entered.append(time.perf_counter())
        return "r" * 200

    for number in range(1_000):
        await ctx.durable_execute_async(timed, number)
    gaps = [after - before for before, after in itertools.pairwise(entered[100:])]
    ctx.send_event(OutputEvent({"id": event.input["id"], "ms": median(gaps) * 1e3}))


STEPS = Agent("steps").add_action("act", [EventType.InputEvent], steps)
STEP_TIMES = Agent("step-times").add_action("act", [EventType.InputEvent], step_times)
