"""Random agents as data: what the engine runs as an `Agent`, and the oracle interprets step by step.

What an action does depends on its event, its memory and its task's id only: how often its first attempts fail is drawn from
(seed, task id), so neither time nor order decides anything that the oracle could not know.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import random
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from agentflow.api.agent import Agent
from agentflow.api.events import Event, EventType, InputEvent, OutputEvent, TimerEvent
from agentflow.api.failure import OnError, Retry
from agentflow.api.memory import set_anyway
from agentflow.api.runner_context import RunnerContext
from agentflow.core.records import Record
from agentflow.testing.paid_service import LUCK_PATH, PaidService
from agentflow.testing.people import People

PATHS = ("a", "b", "o.x", "o.y")
FIRED = "fired"
NOTED = "noted"
TIMER_AFTER_MS = 7
KEYS: tuple[object, ...] = (1, "1", "k", 2.5)


class Op(enum.Enum):
    """One thing that an action does."""

    COUNT = "count"
    APPEND = "append"
    DELETE = "delete"
    SENSORY = "sensory"
    EMIT = "emit"
    SEND = "send"
    EVENT_TIMER = "event timer"
    CLOCK_TIMER = "clock timer"
    PAY = "pay"
    PAY_IN_BRANCHES = "pay in branches"
    LUCK = "luck"
    SLEEP = "sleep"
    ASK = "ask"
    ASK_IN_TIME = "ask in time"


WAITS = (Op.SLEEP, Op.ASK, Op.ASK_IN_TIME)
SLEEPS = ("1ms", "3ms", "20ms")


class ActionSpec(msgspec.Struct, frozen=True):
    """One action.

    Attributes:
        name: Its name.
        trigger: Event type.
        ops: (what, memory path or event type) in order.
        is_async: Awaits a random time between its ops.
        is_parallel: Runs in a parallel group with its neighbours.
        attempts: Attempts in total.
        on_error: Behind the last one.
        failing_share: Percentage of its tasks whose first attempts fail.
        wait_ms_max: Longest wait.
    """

    name: str
    trigger: str
    ops: tuple[tuple[Op, str], ...]
    is_async: bool
    is_parallel: bool
    attempts: int
    on_error: OnError | None
    failing_share: int
    wait_ms_max: int

    def failures(self, seed: int, task_id: str) -> int:
        """Return how many first attempts of a task fail."""
        drawn = zlib.crc32(f"{seed}/{task_id}".encode())
        return 1 + drawn // 100 % 3 if drawn % 100 < self.failing_share else 0

    def keeps(self, seed: int) -> bool:
        """Return whether each attempt leaves an account, whatever becomes of it."""
        return zlib.crc32(f"{seed}/{self.name}".encode()) % 2 == 0

    def wait_ms(self, seed: int, task_id: str, attempt: int) -> int:
        """Return how long an attempt waits."""
        return zlib.crc32(f"{seed}/{task_id}/{attempt}".encode()) % (self.wait_ms_max + 1)


def account_of(task_id: str, attempt: int) -> str:
    """Return the memory path of what an attempt leaves whatever becomes of it."""
    return f"kept.{hashlib.blake2b(task_id.encode(), digest_size=8).hexdigest()}_{attempt}"


class Program(msgspec.Struct, frozen=True):
    """One agent of a chain.

    Attributes:
        seed: Decides what fails and how long it waits.
        actions: Its actions.
        has_timers: It also notes the event time of each input, and tells of each timer which inputs came before it.
    """

    seed: int
    actions: tuple[ActionSpec, ...]
    has_timers: bool

    def agent(self, name: str, service: PaidService | None = None, people: People | None = None) -> Agent:
        """Return the agent that the engine runs."""
        agent = Agent(name)
        if self.has_timers:
            agent.add_action("note", [EventType.InputEvent], note)
            agent.add_action("on_timer", [EventType.TimerEvent], on_timer)
        for spec in self.actions:
            retry = Retry(attempts=spec.attempts, initial="3ms", wait_max="20ms")
            agent.add_action(
                spec.name,
                [spec.trigger],
                _async_function(self.seed, spec, name, service, people)
                if spec.is_async
                else _function(self.seed, spec, service),
                parallel=spec.is_parallel,
                retry=retry,
                on_error=spec.on_error,
            )
        return agent


def note(event: Event, ctx: RunnerContext) -> None:  # noqa: ARG001 (the signature of an action)
    """Note the event time of an input."""
    ctx.short_term_memory.update(NOTED, lambda noted: [*(noted or []), ctx.timestamp])


def on_timer(event: Event, ctx: RunnerContext) -> None:
    """Count a fired timer, and tell of it and of how many inputs up to its time came before it."""
    timer = TimerEvent.from_event(event)
    ctx.short_term_memory.update(FIRED, lambda count: (count or 0) + 1)
    before = sum(timestamp <= timer.due_ms for timestamp in ctx.short_term_memory.get(NOTED, []))
    ctx.send_event(OutputEvent({"k": ctx.key, "timer": timer.name, "before": before}))


def _function(seed: int, spec: ActionSpec, service: PaidService | None) -> Any:  # noqa: ANN401 (an action)
    def act(event: Event, ctx: RunnerContext) -> None:
        _perform(spec.ops, event, ctx, service)
        _fail(seed, spec, ctx)

    return act


def _async_function(seed: int, spec: ActionSpec, agent: str, service: PaidService | None, people: People | None) -> Any:  # noqa: ANN401 (an action)
    async def act(event: Event, ctx: RunnerContext) -> None:
        middle = len(spec.ops) // 2
        for place, (op, name) in enumerate(spec.ops):
            if place == middle and (wait_ms := spec.wait_ms(seed, ctx.task_id, ctx.attempt)):
                await asyncio.sleep(wait_ms / 1000)
            if op in (Op.PAY, Op.PAY_IN_BRANCHES):
                assert service is not None
                pay = service.step if op is Op.PAY else service.branches
                ctx.short_term_memory.set(name, await pay(ctx, str(place), _number(event)))
            elif op is Op.SLEEP:
                await ctx.sleep(name)
            elif op in WAITS:
                assert people is not None
                await people.ask(ctx, agent, str(place), None if op is Op.ASK else "3ms")
            else:
                _perform(((op, name),), event, ctx, service)
        _fail(seed, spec, ctx)

    return act


def _fail(seed: int, spec: ActionSpec, ctx: RunnerContext) -> None:
    """Fail behind all ops, so that a failed attempt has something to leave behind if it could; and leave what is to be kept of it."""
    if spec.keeps(seed):
        set_anyway(ctx.short_term_memory, account_of(ctx.task_id, ctx.attempt), 1)
    if ctx.attempt <= spec.failures(seed, ctx.task_id):
        msg = f"attempt {ctx.attempt}"
        raise ValueError(msg)


def _number(event: Event) -> Any:  # noqa: ANN401 (a value of a script)
    return event.input["n"] if isinstance(event, InputEvent) else event.attributes["n"]


def _perform(ops: tuple[tuple[Op, str], ...], event: Event, ctx: RunnerContext, service: PaidService | None) -> None:
    n = _number(event)
    memory = ctx.short_term_memory
    for op, name in ops:
        if op is Op.COUNT:
            memory.update(name, lambda value: (value if isinstance(value, int) else 0) + 1)
        elif op is Op.APPEND:
            memory.update(name, lambda value: [*(value if isinstance(value, list) else []), n][-4:])
        elif op is Op.DELETE:
            memory.delete(name)
        elif op is Op.SENSORY:
            ctx.sensory_memory.update(name, lambda value: (value or 0) + 1)
        elif op is Op.EMIT:
            seen = [memory.get(path) for path in PATHS]
            sensory = [ctx.sensory_memory.get(path) for path in PATHS]
            output = {"k": ctx.key, "n": n, "by": ctx.task_id, "seen": seen, "sensory": sensory, "ts": ctx.timestamp}
            ctx.send_event(OutputEvent(output))
        elif op is Op.SEND:
            ctx.send_event(Event(name, {"n": n}))
        elif op is Op.LUCK:
            assert service is not None
            memory.set(LUCK_PATH, service.draw())
        else:
            ctx.set_timer(f"{op.value} {ctx.task_id}", after=f"{TIMER_AFTER_MS}ms", is_event_time=op is Op.EVENT_TIMER)


def random_program(
    luck: random.Random, *, has_timers: bool, has_steps: bool = False, waits: Sequence[Op] = WAITS
) -> Program:
    """Draw an agent of one to four actions: events go from lower to higher levels, so every run ends."""
    actions = []
    levels = luck.randint(1, 3)
    for number in range(luck.randint(1, 4)):
        level = 0 if number == 0 else luck.randrange(levels)
        ops = [_random_op(luck, level, levels, has_timers=has_timers) for _ in range(luck.randint(1, 4))]
        if number == 0 or luck.random() < 0.5:
            ops.append((Op.EMIT, ""))
        is_async, is_parallel = luck.random() < 0.6, luck.random() < 0.4
        if has_steps and is_async and luck.random() < 0.7:
            for _ in range(luck.randint(1, 3)):
                op = luck.choice([Op.PAY, Op.PAY_IN_BRANCHES])
                ops.insert(luck.randint(0, len(ops)), (op, luck.choice(PATHS)))
            if not is_parallel and luck.random() < 0.5:  # outputs of a group would leave in the order of their waits
                for _ in range(luck.randint(1, 2)):
                    ops.insert(luck.randint(0, len(ops)), (luck.choice(waits), luck.choice(SLEEPS)))
        elif has_steps:
            ops.append((Op.LUCK, LUCK_PATH))
        actions.append(
            ActionSpec(
                name=f"act{number}",
                trigger=EventType.InputEvent if level == 0 else f"level{level}",
                ops=tuple(ops),
                is_async=is_async,
                is_parallel=is_parallel,
                attempts=luck.randint(1, 3),
                on_error=luck.choice([None, OnError.SKIP, OnError.DEAD_LETTER]),
                failing_share=luck.choice([0, 0, 20, 50]),
                wait_ms_max=luck.choice([0, 3, 30]),
            )
        )
    return Program(luck.getrandbits(32), tuple(actions), has_timers)


def _random_op(luck: random.Random, level: int, levels: int, *, has_timers: bool) -> tuple[Op, str]:
    kinds = [Op.COUNT, Op.APPEND, Op.APPEND, Op.DELETE, Op.SENSORY]
    if level + 1 < levels:
        kinds += [Op.SEND, Op.SEND]
    if has_timers:
        kinds += [Op.EVENT_TIMER, Op.CLOCK_TIMER]
    op = luck.choice(kinds)
    return op, f"level{luck.randint(level + 1, levels - 1)}" if op is Op.SEND else luck.choice(PATHS)


def random_script(luck: random.Random, records_max: int, *, is_dirty: bool) -> list[Record]:
    """Draw records over few keys and two labels; a dirty script has records without a key and broken ones."""
    keys = KEYS[: luck.randint(1, len(KEYS))]
    offsets = {"in/0": 0, "in/1": 0}
    records = []
    for n in range(luck.randint(1, records_max)):
        key = luck.choice(keys)
        label = f"in/{keys.index(key) % 2}"
        value = msgspec.json.encode({"k": key, "n": n, "ts": 1_000 + 5 * n - luck.randint(0, 4)})
        if is_dirty and luck.random() < 0.1:
            value = luck.choice([b'{"n": 1, "ts": 1000}', b'{"k": 1, "ts": 1000', b'{"k": [], "ts": 1000}'])
        size = luck.randint(1, 9)
        records.append(Record(label, offsets[label], offsets[label] + size, value))
        offsets[label] += size
    return records
