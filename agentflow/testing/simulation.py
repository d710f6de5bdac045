"""A seeded world: a random agent, a random script, random crashes; the real engine against the sequential run.

`simulate(seed)` builds everything from the seed, runs `Job` in virtual time through crashes and restarts until the input is
finished, and judges what survived: outputs once and in order per key, memory, dead letters, no unfinished run, every timer,
no watermark too early, no word of complaint from asyncio. `simulate_every_point` replaces the random crashes by one crash at
each point of a run in turn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from agentflow.core.records import Record
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.ports import Sink
from agentflow.runtime.settings import (
    CheckpointSettings,
    EventTimeSettings,
    JobSettings,
    KeySettings,
    RestartSettings,
    RunSettings,
    StateSettings,
)
from agentflow.testing.faults import (
    Fault,
    FaultySignals,
    FaultySink,
    FaultySource,
    FaultyState,
    Machine,
)
from agentflow.testing.judgement import Outcome, judge
from agentflow.testing.lives import Lives
from agentflow.testing.oracle import Expected, run_sequentially
from agentflow.testing.paid_service import PaidService
from agentflow.testing.people import People
from agentflow.testing.program import WAITS, Op, Program, random_program, random_script

ROLES = ("sink", "dead-letter")


class SimulationReport(msgspec.Struct, frozen=True):
    """What one simulation came to.

    Attributes:
        seed: The seed.
        violations: What is not as in the sequential run, one text each; empty when all is well.
        lives: Processes that it took.
        points: Points passed in all lives.
        outputs: Visible outputs.
        trace: Names of the points, in order.
    """

    seed: int
    violations: tuple[str, ...]
    lives: int
    points: int
    outputs: int
    trace: tuple[str, ...]

    @property
    def is_ok(self) -> bool:
        """Whether everything is as in the sequential run."""
        return not self.violations

    def __str__(self) -> str:
        head = f"seed {self.seed}: {self.lives} lives, {self.points} points, {self.outputs} outputs"
        return "\n".join([f"{head}: {'ok' if self.is_ok else 'VIOLATED'}", *self.violations])


class Scenario:
    """Everything that a seed decides but the faults.

    Args:
        seed: The seed.
        records_max: Longest script.
        may_have_timers: Whether event time is part of it.
        is_clean: Every record has a key and can be decoded.
        waits: What actions with steps may wait for.
    """

    def __init__(
        self,
        seed: int,
        records_max: int = 30,
        *,
        may_have_timers: bool = True,
        is_clean: bool = False,
        waits: Sequence[Op] = WAITS,
    ) -> None:
        self.seed = seed
        luck = random.Random(seed)  # noqa: S311 (the seed of a simulation)
        self.has_timers = luck.random() < 0.4 and may_have_timers
        has_steps = luck.random() < 0.6
        count = 1 if luck.random() < 0.6 else 2
        self.programs = [
            random_program(luck, has_timers=self.has_timers and index == count - 1, has_steps=has_steps, waits=waits)
            for index in range(count)
        ]
        self.records: list[Record] = random_script(luck, records_max, is_dirty=luck.random() < 0.3 and not is_clean)
        self.wait_ms_max = luck.choice([0, 1, 5])
        self.settings = JobSettings(
            job="simulation",
            checkpoint=CheckpointSettings(interval_ms=luck.choice([1, 2, 5, 20, 100])),
            restart=RestartSettings(strategy="fixed-delay", delay_ms=10, attempts=20),
            run=RunSettings(
                in_flight_max=luck.choice([1, 2, 10_000]),
                sleeping_max=luck.choice([1, 10_000]),
                park_after_ms=luck.choice([1, 2, 5, 10_000]),
            ),
            key=KeySettings(pending_max=luck.choice([1, 2, 10_000])),
            state=StateSettings(cache_bytes=luck.choice([0, 2_000, 2**20])),
            event_time=EventTimeSettings(field="ts" if self.has_timers else None, max_out_of_orderness_ms=0),
        )

    @property
    def expected(self) -> Expected:
        """What the sequential run comes to."""
        return run_sequentially(self.programs, self.records, has_event_time=self.has_timers)


class _World:
    """The lives of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.machine = Machine(ROLES)
        self.lives = Lives(self.machine, self._begin)
        self._scenario = scenario
        self._service = PaidService(f"{scenario.seed}/service", self.machine.fuse)
        self._people = People(f"{scenario.seed}/people", self.machine.signals)
        self._plans = [
            _plan(program, index, self._service, self._people) for index, program in enumerate(scenario.programs)
        ]

    def _begin(self) -> JobSpec:
        self._people.wake_up()
        scenario, machine, fuse = self._scenario, self.machine, self.machine.fuse
        luck = random.Random(f"{scenario.seed}/{self.lives.count}")  # noqa: S311 (the seed of a simulation)
        wait_ms_max = scenario.wait_ms_max

        def open_sinks() -> Mapping[str, Sink]:
            return {role: FaultySink(role, disk, fuse, luck, wait_ms_max) for role, disk in machine.sinks.items()}

        return JobSpec(
            scenario.settings,
            [AgentStage(plan, "k") for plan in self._plans],
            lambda: FaultySource(scenario.records, fuse, luck, wait_ms_max),
            open_sinks,
            lambda: FaultyState(machine.storage, fuse),
            open_signals=lambda: FaultySignals(machine.signals, fuse, luck),
        )

    def report(self) -> SimulationReport:
        """Judge what survived."""
        outcome = Outcome(self.machine.storage, {role: disk.outputs for role, disk in self.machine.sinks.items()})
        violations = (
            *self.lives.complaints,
            *self._service.violations,
            *self._people.violations,
            *judge(outcome, self._scenario.expected),
        )
        fuse = self.machine.fuse
        visible = len(outcome.outputs["sink"])
        return SimulationReport(
            self._scenario.seed, violations, self.lives.count, fuse.points, visible, tuple(fuse.trace)
        )


def _plan(program: Program, index: int, service: PaidService, people: People) -> AgentPlan:
    return AgentPlan.from_agent(program.agent(f"agent{index}", service, people))


def simulate(seed: int, *, records_max: int = 30) -> SimulationReport:
    """Run one seeded world, with random faults, to the end of its input.

    Args:
        seed: Decides everything; the same seed passes the same points.
        records_max: Longest script.
    """
    world = _World(Scenario(seed, records_max))
    luck = random.Random(f"{seed}/faults")  # noqa: S311 (the seed of a simulation)
    if not world.lives.live_with_faults(luck):
        world.lives.live()
    return world.report()


def simulate_every_point(seed: int, fault: Fault, *, records_max: int = 5) -> Iterator[SimulationReport]:
    """Run a short seeded world once for each point that it passes, with ``fault`` there and nowhere else."""
    point = 1
    while True:
        world = _World(Scenario(seed, records_max))
        world.machine.fuse.arm(point, fault)
        if not world.lives.live():
            world.machine.restart(fault)
            world.lives.live()
        elif world.machine.fuse.points < point:
            return
        yield world.report()
        point += 1
