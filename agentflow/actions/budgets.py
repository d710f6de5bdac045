"""Budgets of calls of models: checked before a call, counted once behind it, also when calls are made at the same time.

What an attempt of a task has spent is one entry of memory, written whatever becomes of the attempt: of the run in sensory memory, of the
key and its days in short-term memory. A call is in the entry of the attempt that has made it, so an answer that is recorded of an
earlier one costs nothing again. While an attempt runs, its entry is not in memory yet, or not whole; what it has spent so far, and what
calls on their way have reserved, is kept beside the run, in process memory, as long as the run is there. A process that takes a run over
counts what the journal has of its running tasks before it lets any of them call: outcomes that they have not asked for again yet, and
calls that are in doubt.

    __spent__.run.TASK_ATTEMPT · __spent__.key.RUN_TASK_ATTEMPT · __spent__.day.DATE.RUN_TASK_ATTEMPT       [calls, tokens, money]

Entries of earlier runs are added up by the first task that comes along outside of a group, or first in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from agentflow.api.budgets import Budget
from agentflow.api.chat_messages import ChatMessage, Usage
from agentflow.api.memory import MemoryObject, set_anyway
from agentflow.api.memory_codec import decode_value
from agentflow.api.runner_context import RunnerContext
from agentflow.errors import BudgetExhausted

_ROOT: Final = "__spent__"
_SUM: Final = "sum"
_FOLD_AT: Final = 8  # entries of earlier runs that are added up together
_COUNTED: Final = ("calls", "tokens", "money")
_INTENT, _RESULT, _ERROR, _CANCELLED = 1, 2, 3, 4  # of `agentflow.core.journal_records.RecordKind`

IN_DOUBT: Final = "in_doubt"
"""`ChatMessage.finish_reason` of a call of which nobody knows whether it was made."""

_decode_answer = msgspec.msgpack.Decoder(ChatMessage).decode
_decode_plain = msgspec.msgpack.Decoder().decode

Spent = list[float]
"""Calls, tokens, money."""

_Call = tuple[str, Spent]
"""A call: name of the chat model, and what it has cost."""


class _Account:
    """What one attempt of a task has spent.

    Attributes:
        name: Tells it from the others of its run.
        counted: Calls that its context has counted, each with the periods of its budgets.
        recorded: Calls that it has made, as the journal says, and has not asked for again: (model, cost).
        earlier: Recorded calls of earlier attempts, which are in their entries, and were not asked for again.
    """

    def __init__(self, task: Any, name: str) -> None:  # noqa: ANN401 (the operator's task)
        self.name = name
        self.counted: list[tuple[_Call, frozenset[str]]] = []
        self.recorded: list[_Call] = []
        self.earlier: list[_Call] = []
        self._replayed: list[_Call] = []  # of earlier attempts, by the present context
        self._ctx: weakref.ref[RunnerContext] | None = None
        for step in () if task.recorded is None else task.recorded.steps.values():
            if not step.is_asked and (cost := _recorded_cost(step)) is not None:
                call = step.call.function.partition(":")[2], cost
                (self.earlier if step.attempt < task.attempt else self.recorded).append(call)

    def open_for(self, ctx: RunnerContext) -> None:
        """Note who counts now; what an earlier context of the attempt, which was parked, has counted is asked for again."""
        if self._ctx is None or self._ctx() is not ctx:
            self._ctx = weakref.ref(ctx)
            self.recorded += (call for call, _ in self.counted)
            self.earlier += self._replayed
            self.counted, self._replayed = [], []

    def count(self, call: _Call, periods: frozenset[str], *, is_recorded: bool) -> None:
        """Count a call, unless an earlier attempt has made it; of a model without budgets, there are no periods."""
        if is_recorded and call in self.recorded:
            self.recorded.remove(call)
        elif is_recorded and call in self.earlier:
            self.earlier.remove(call)
            self._replayed.append(call)
            return
        if periods:
            self.counted.append((call, periods))

    def sum(self, per: str) -> Spent:
        """Return what it is in all; of recorded calls nobody knows yet whose budgets they spend."""
        return _sum(
            [cost for (_, cost), periods in self.counted if per in periods] + [cost for _, cost in self.recorded]
        )


class _Ledger:
    """What the running tasks of one run have spent, as far as their memory entries do not show it to each other."""

    def __init__(self, run: Any) -> None:  # noqa: ANN401 (the operator's run)
        self.reserved: dict[Meter, Spent] = {}  # calls on their way, with the answers that are expected
        self.settled = asyncio.Event()  # set, and replaced, when one of them has ended
        self._accounts: dict[str, _Account] = {}
        self._run = hashlib.blake2b(run.id.encode(), digest_size=6).hexdigest()
        for task in run.tasks:
            if task.outcome is None:
                self.account(task)

    def account(self, task: Any) -> _Account:  # noqa: ANN401 (the operator's task)
        """Return the account of a task's attempt."""
        name = f"{hashlib.blake2b(task.id.encode(), digest_size=8).hexdigest()}_{task.attempt}"
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = _Account(task, name)
        return account

    def settle(self, meter: Meter) -> bool:
        """Note that a call is not on its way any more; False: it was not."""
        was_on_its_way = self.reserved.pop(meter, None) is not None
        if was_on_its_way:
            self.settled.set()
            self.settled = asyncio.Event()
        return was_on_its_way

    def leaf(self, account: _Account, per: str) -> str:
        """Return the name of an account's entry of memory."""
        return account.name if per == "run" else f"{self._run}_{account.name}"

    def is_of_run(self, leaf: str) -> bool:
        """Whether an entry of the key, or of a day, is one of this run."""
        return leaf.startswith(self._run)

    def sums(self, per: str) -> dict[str, Spent]:
        """Return what is known of attempts, by the names of their entries."""
        return {self.leaf(account, per): account.sum(per) for account in self._accounts.values()}


_ledgers: weakref.WeakKeyDictionary[Any, _Ledger] = weakref.WeakKeyDictionary()


class Meter:
    """The budgets of one request, for one task.

    Args:
        ctx: Context of the task.
        budgets: The budgets.
        model: Name of the chat model that is called.
    """

    def __init__(self, ctx: RunnerContext, budgets: Sequence[Budget], model: str) -> None:
        self._ctx = ctx
        self._budgets = budgets
        self._model = model
        task = self._task = ctx._task  # noqa: SLF001 (the context's engine side)
        if not budgets:
            return  # nothing is checked, and nothing counted
        ledger = _ledgers.get(task.run)
        if ledger is None:
            ledger = _ledgers[task.run] = _Ledger(task.run)
        self._ledger = ledger
        self._account = ledger.account(task)
        self._account.open_for(ctx)
        self._periods = frozenset(budget.per for budget in budgets)
        if self._account.recorded:
            self._write()  # it may be stopped before it asks for them again

    @property
    def has_budgets(self) -> bool:
        """Whether anything is checked."""
        return bool(self._budgets)

    @property
    def counts_calls(self) -> bool:
        """Whether some budget counts calls: then a call that may have happened is one."""
        return any(budget.calls is not None for budget in self._budgets)

    async def reserve(self, prompt: Spent, answer: Spent) -> None:
        """Check that a call may be made, and keep its estimated cost until it is counted, or given back.

        A call for whose answer there may be nothing left, depending on what others on their way will cost, waits for them.

        Args:
            prompt: What the call costs without its answer.
            answer: What the answer is taken to cost.

        Raises:
            BudgetExhausted: It would spend more than there is.
        """
        if not self._budgets:
            return
        await asyncio.sleep(0)  # tasks and branches that started with this one show what they have spent already
        expected = _sum([prompt, answer])
        while not self._has_room(prompt, expected):
            await self._ledger.settled.wait()
        self._ledger.reserved[self] = expected
        self._write()

    def _has_room(self, prompt: Spent, expected: Spent) -> bool:
        """Whether a call may be made now; else others are on their way, and it has to be seen what they cost."""
        has_room = True
        for budget in self._budgets:
            spent, reserved = self._spent(budget.per), self._reserved(budget.per)
            for place, counted in enumerate(_COUNTED):
                limit = getattr(budget, counted)
                if limit is None:
                    continue
                known = spent[place] + (reserved[place] if counted == "calls" else 0)
                if known >= limit or known + prompt[place] > limit:
                    raise BudgetExhausted(f"{budget.per}.{counted}", limit, known)
                if reserved[0] and spent[place] + reserved[place] + expected[place] > limit:
                    has_room = False
        return has_room

    def release(self) -> None:
        """Give back what was reserved, if it was not counted."""
        if self._budgets and self._ledger.settle(self):
            self._write()

    def count(self, spent: Spent, *, is_recorded: bool) -> None:
        """Count what a call has cost, whether it was made now or its outcome is from the journal."""
        if not self._budgets:
            if is_recorded and (ledger := _ledgers.get(self._task.run)) is not None:
                ledger.account(self._task).count((self._model, spent), frozenset(), is_recorded=True)
            return
        self._ledger.settle(self)
        self._account.count((self._model, spent), self._periods, is_recorded=is_recorded)
        self._write()
        for per in self._periods:
            if per != "run":
                self._fold(*self._folder(per))

    def _write(self) -> None:
        """Write what the attempt has spent; a call on its way is one, should nobody hear of it again."""
        mine = [meter._periods for meter in self._ledger.reserved if meter._account is self._account]  # noqa: SLF001 (of the same class)
        for per in self._periods:
            memory, folder = self._folder(per)
            on_their_way = sum(per in periods for periods in mine)
            entry = _sum([self._account.sum(per), [on_their_way, 0, 0.0]])
            set_anyway(memory, f"{folder}.{self._ledger.leaf(self._account, per)}", entry)

    def _folder(self, per: str) -> tuple[MemoryObject, str]:
        if per == "run":
            return self._ctx.sensory_memory, f"{_ROOT}.run"
        day = f".{self._ctx.now:%Y%m%d}" if per == "day" else ""
        return self._ctx.short_term_memory, f"{_ROOT}.{per}{day}"

    def _spent(self, per: str) -> Spent:
        memory, folder = self._folder(per)
        entries = {**dict(self._of_group(per, folder)), **dict(_entries(memory, folder)), **self._ledger.sums(per)}
        return _sum(list(entries.values()))

    def _reserved(self, per: str) -> Spent:
        """Return what the calls on their way are taken to cost."""
        return _sum([expected for meter, expected in self._ledger.reserved.items() if per in meter._periods])  # noqa: SLF001 (of the same class)

    def _of_group(self, per: str, folder: str) -> Iterator[tuple[str, Spent]]:
        """Return what tasks of the group have spent that have ended, and are not applied yet."""
        for member in self._task.run.group or ():
            if member.outcome is None:
                continue
            writes = member.outcome.sensory if per == "run" else member.outcome.writes
            for path, value in (writes or {}).items():
                if value is not None and path.startswith(f"{folder}."):
                    entry: Any = decode_value(value)
                    yield path.removeprefix(f"{folder}."), entry

    def _fold(self, memory: MemoryObject, folder: str) -> None:
        """Add up the entries of earlier runs, and forget days that are over."""
        run = self._task.run
        if run.group is not None and run.group[0] is not self._task:
            return
        earlier = [(name, entry) for name, entry in _entries(memory, folder) if not self._ledger.is_of_run(name)]
        if len(earlier) > _FOLD_AT:
            memory.set(f"{folder}.{_SUM}", _sum([entry for _, entry in earlier]))
            for name, _ in earlier:
                if name != _SUM:
                    memory.delete(f"{folder}.{name}")
        days, _, today = folder.rpartition(".")
        if days.endswith(".day"):
            for day in memory.get(days).get_field_names():
                if day < today:
                    memory.delete(f"{days}.{day}")


def turns_within(budgets: Sequence[Budget], most: int) -> int:
    """Return the most turns of a tool loop, given what the chat model allows."""
    return min([most, *(budget.turns for budget in budgets if budget.turns is not None)])


def cost_of(answer: ChatMessage) -> Spent:
    """Return what a call has cost that was answered, or is in doubt."""
    usage = answer.usage or Usage()
    return [1, usage.input_tokens + usage.output_tokens, answer.extra_args.get("cost", 0.0)]


def _recorded_cost(step: Any) -> Spent | None:  # noqa: ANN401 (a recorded step)
    """Return what a recorded step has cost; None: it is no call of a model, or none was made."""
    if not step.call.function.startswith("chat:"):
        return None
    if step.kind == _RESULT:
        return cost_of(_decode_answer(step.payload))
    if step.kind == _ERROR:
        kind: str = _decode_plain(step.payload)[0]
        return None if kind.rpartition(".")[2] in ("BudgetExhausted", "CircuitOpen") else [1, 0, 0.0]
    return [1, 0, 0.0] if step.kind in (_INTENT, _CANCELLED) else None


def _entries(memory: MemoryObject, folder: str) -> list[tuple[str, Spent]]:
    if not memory.is_exist(folder):
        return []
    found = memory.get(folder)
    return [(name, found.get(name)) for name in found.get_field_names()]


def _sum(entries: Sequence[Spent]) -> Spent:
    return [sum(column) for column in zip([0, 0, 0.0], *entries, strict=True)]
