"""A seeded world whose inputs come from callers: requests to a job that crashes under them, against the sequential run.

Callers outlive every process, as clients of a service do. Each has a key of its own and asks one thing after the other, again and again
with the same request id until it is answered. What it was told once it is told for ever; and the answers together are those of a
sequential run, whose inputs have the run ids that the answers name.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import msgspec

from agentflow.core.records import ErrorReport, Record
from agentflow.core.results import decode_result, result_name_of_id
from agentflow.errors import AgentflowError, RequestError, RequestMismatch
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.codecs import RECORD_KEY, encode_key
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.ports import Sink
from agentflow.runtime.requests import RequestTable
from agentflow.testing.faults import Fault, FaultySignals, FaultySink, FaultySource, FaultyState, Fuse, Machine
from agentflow.testing.judgement import Outcome, judge
from agentflow.testing.lives import Lives
from agentflow.testing.oracle import Expected, run_sequentially
from agentflow.testing.paid_service import PaidService
from agentflow.testing.people import People
from agentflow.testing.program import WAITS
from agentflow.testing.simulation import ROLES, Scenario, SimulationReport

_QUEUE_MAX = 2  # requests that wait to be admitted


class Answer(msgspec.Struct, frozen=True):
    """What a caller was told.

    Attributes:
        run_id: The run.
        outputs: Its outputs.
        error: Type of the error that ended it early; empty: none did.
    """

    run_id: str
    outputs: tuple[bytes | None, ...]
    error: str


class Callers:
    """See the module's docstring.

    Args:
        seed: Decides how long they think, and what they ask twice.
        records: What they ask: each record's value has its key.
        fuse: Of the machine that they call.
    """

    def __init__(self, seed: str, records: list[Record], fuse: Fuse) -> None:
        self.violations: list[str] = []
        self.answers: dict[str, Answer] = {}
        self._luck = random.Random(seed)  # noqa: S311 (the seed of a simulation)
        self._fuse = fuse
        self._by_key: dict[bytes, list[tuple[str, bytes]]] = {}
        self.asked: list[tuple[str, bytes]] = []
        for n, record in enumerate(records):
            value = record.value or b"null"
            key = encode_key(msgspec.json.decode(value)["k"])
            self._by_key.setdefault(key, []).append((f"r{n}", value))
            self.asked.append((f"r{n}", value))
        self._attending: asyncio.Task[None] | None = None

    def attend(self, job: Job, table: RequestTable) -> None:
        """Ask a job that has just started, unless somebody does already."""
        if self._attending is None or self._attending.done():
            self._attending = asyncio.ensure_future(self._attend(job, table))

    def forget(self) -> None:
        """The process that was asked is gone."""
        self._attending = None

    async def _attend(self, job: Job, table: RequestTable) -> None:
        async with asyncio.TaskGroup() as group:
            for key, requests in self._by_key.items():
                group.create_task(self._ask_all(job, table, key, requests))
        job.request_stop()

    async def _ask_all(self, job: Job, table: RequestTable, key: bytes, requests: list[tuple[str, bytes]]) -> None:
        for request_id, value in requests:
            if request_id in self.answers and self._luck.random() < 0.7:
                continue  # the others are asked again
            await asyncio.sleep(self._luck.choice([0, 0, 0.001, 0.02]))
            answer = None
            while answer is None:
                answer = await self._ask(job, table, key, request_id, value)
            known = self.answers.setdefault(request_id, answer)
            if known != answer:
                self.violations.append(f"request {request_id} is told {answer}, and was told {known}")

    async def _ask(self, job: Job, table: RequestTable, key: bytes, request_id: str, value: bytes) -> Answer | None:
        """Return an answer; None: ask again."""
        try:
            if self._luck.random() < 0.5:
                async with table.room():
                    request = _kept(job, table, request_id) or table.submit(0, key, value, request_id, has_room=True)
            else:
                request = _kept(job, table, request_id) or table.submit(0, key, value, request_id)
            if isinstance(request, Answer):
                return request
            if self._luck.random() < 0.2:  # another caller, who gives up
                asyncio.get_running_loop().call_soon(asyncio.ensure_future(request.end()).cancel)
            await request.end()
        except RequestError as error:
            if isinstance(error, RequestMismatch):
                self.violations.append(f"request {request_id}: {error}")
            await asyncio.sleep(0.001)
            return None
        return _answer(request.run_id, list(request.outputs), request.error)

    def judge(self, expected: Expected) -> list[str]:
        """Return what answers say, or leave unsaid, that the sequential run does not."""
        violations = [f"request {one} was never answered" for one, _ in self.asked if one not in self.answers]
        dead = {run: error for run, _, error in expected.dead}
        for request_id, answer in self.answers.items():
            outputs = [msgspec.json.decode(output or b"null") for output in answer.outputs]
            wanted = [output for output in expected.outputs if str(output["by"]).startswith(f"{answer.run_id}/")]
            if outputs != wanted or answer.error != dead.get(answer.run_id, ""):
                violations.append(
                    f"request {request_id} is told {outputs} {answer.error} instead of {wanted} {dead.get(answer.run_id, '')}"
                )
        return violations

    @property
    def script(self) -> list[Record]:
        """What the job was asked, as records that have the run ids of the answers, in the order of each caller."""
        return [
            Record(*_position(self.answers[request_id].run_id), 0, value)
            for request_id, value in self.asked
            if request_id in self.answers
        ]


def _kept(job: Job, table: RequestTable, request_id: str) -> Answer | None:
    """Return the kept answer of a request that is not open."""
    stored = None if table.find_id(0, request_id) else job.result_of(0, result_name_of_id(request_id))
    if stored is None:
        return None
    result = decode_result(stored)
    return _answer(result.run_id, result.outputs, result.failure)


def _answer(run_id: str, outputs: list[bytes | None], error: ErrorReport | None) -> Answer:
    return Answer(run_id, tuple(outputs), "" if error is None else error.type)


def _position(run_id: str) -> tuple[str, int]:
    source, _, offset = run_id.rpartition("/")
    return source, int(offset)


class _World:
    """The lives of one scenario."""

    def __init__(self, seed: int, records_max: int) -> None:
        self.scenario = scenario = Scenario(seed, records_max, may_have_timers=False, waits=WAITS, is_clean=True)
        self.machine = machine = Machine(ROLES)
        self.lives = Lives(machine, self._begin, self._attend)
        self.callers = Callers(f"{seed}/callers", scenario.records, machine.fuse)
        self._service = PaidService(f"{seed}/service", machine.fuse)
        self._people = People(f"{seed}/people", machine.signals)
        self._plan = AgentPlan.from_agent(scenario.programs[0].agent("agent0", self._service, self._people))
        self._table = RequestTable(_QUEUE_MAX)

    def _begin(self) -> JobSpec:
        self._people.wake_up()
        self.callers.forget()
        scenario, machine, fuse = self.scenario, self.machine, self.machine.fuse
        luck = random.Random(f"{scenario.seed}/{self.lives.count}")  # noqa: S311 (the seed of a simulation)
        wait_ms_max = scenario.wait_ms_max
        self._table = RequestTable(_QUEUE_MAX)

        def open_sinks() -> Mapping[str, Sink]:
            return {role: FaultySink(role, disk, fuse, luck, wait_ms_max) for role, disk in machine.sinks.items()}

        return JobSpec(
            msgspec.structs.replace(scenario.settings, on_overflow="dead-letter"),
            (AgentStage(self._plan, RECORD_KEY),),
            lambda: _Silence([], fuse, luck),
            open_sinks,
            lambda: FaultyState(machine.storage, fuse),
            open_signals=lambda: FaultySignals(machine.signals, fuse, luck),
            requests=self._table,
        )

    def _attend(self, job: Job) -> None:
        self.callers.attend(job, self._table)

    def report(self) -> SimulationReport:
        """Judge what survived, and what callers were told."""
        outcome = Outcome(self.machine.storage, {role: disk.outputs for role, disk in self.machine.sinks.items()})
        expected = run_sequentially(self.scenario.programs[:1], self.callers.script, has_event_time=False)
        violations = (
            *self.lives.complaints,
            *self._service.violations,
            *self._people.violations,
            *self.callers.violations,
            *self.callers.judge(expected),
            *judge(outcome, expected),
        )
        fuse, visible = self.machine.fuse, len(outcome.outputs["sink"])
        return SimulationReport(
            self.scenario.seed, violations, self.lives.count, fuse.points, visible, tuple(fuse.trace)
        )


class _Silence(FaultySource):
    """A source of nothing, which does not end."""

    async def fetch(self, records_max: int) -> list[Record]:  # noqa: ARG002 (the port)
        await asyncio.get_running_loop().create_future()
        return []


def simulate_requests(seed: int, *, records_max: int = 20) -> SimulationReport:
    """Run one seeded world, with random faults, until every caller is answered.

    Args:
        seed: Decides everything; the same seed passes the same points.
        records_max: Most requests.
    """
    world = _World(seed, records_max)
    luck = random.Random(f"{seed}/faults")  # noqa: S311 (the seed of a simulation)
    is_over = world.lives.live_with_faults(luck)
    while not is_over and not world.lives.live():
        world.machine.restart(Fault.KILLED)
    return world.report()


assert issubclass(RequestError, AgentflowError), "callers ask again whatever their request met"
