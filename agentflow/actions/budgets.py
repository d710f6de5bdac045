"""Budgets of calls of models: checked before a call, counted once behind it, also when calls are made at the same time.

What a task has spent is one entry of memory, written when the task completes: of the run in sensory memory, of the key and its days in
short-term memory. So it is as exact as all state, and a replayed call, whose outcome is recorded, is counted as it was. Tasks of a
parallel group do not see each other's writes; what they have spent so far, and what calls on their way have reserved, is kept beside
the run, in process memory: it is there as long as these tasks are. A process that takes a run over counts what the journal has of its
running tasks before it lets any of them call: outcomes that they have not asked for again yet, and calls that are in doubt. So do calls
of an attempt that has failed, or was parked: they count on, and those that the next one asks for again count once.

    __spent__.run.TASK · __spent__.key.RUN_TASK · __spent__.day.DATE.RUN_TASK       [calls, tokens, money]

Entries of earlier runs are added up by the first task that comes along outside of a group, or first in it. What a task has spent that
fails counts for its run, and not for the key: its writes never happen.
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
from agentflow.api.memory import MemoryObject
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


class _Ledger:
    """What the running tasks of one run have spent, as far as their memory entries do not show it to each other."""

    def __init__(self) -> None:
        self.entries: dict[str, Spent] = {}  # path of the entry → as it will be written
        self.reserved: dict[object, Spent] = {}  # calls on their way
        self.recorded: dict[
            str, list[Spent]
        ] = {}  # task → calls of other contexts, that its present one has not counted
        self.counted: dict[str, tuple[weakref.ref[RunnerContext], list[Spent]]] = {}  # task → calls that a context has

    def counted_by(self, ctx: RunnerContext, task: str) -> list[Spent]:
        """Return what a context of a task has counted; what an earlier one has, whose writes are lost, is not forgotten.

        Args:
            ctx: The context.
            task: What the entries of its task end with.
        """
        known = self.counted.get(ctx.task_id)
        if known is not None and known[0]() is ctx:
            return known[1]
        if known is not None:
            self.recorded.setdefault(ctx.task_id, []).extend(known[1])
            self.entries = {path: entry for path, entry in self.entries.items() if not path.endswith(task)}
        calls: list[Spent] = []
        self.counted[ctx.task_id] = (weakref.ref(ctx), calls)
        return calls


_ledgers: weakref.WeakKeyDictionary[Any, _Ledger] = weakref.WeakKeyDictionary()


class Meter:
    """The budgets of one request, for one task.

    Args:
        ctx: Context of the task.
        budgets: The budgets.
    """

    def __init__(self, ctx: RunnerContext, budgets: Sequence[Budget]) -> None:
        self._ctx = ctx
        self._budgets = budgets
        run = ctx._task.run  # noqa: SLF001 (the context's engine side)
        self._run = run
        if not budgets:
            return  # nothing is checked, and nothing counted
        self._ledger = _ledger_of(run)
        task = hashlib.blake2b(ctx.task_id.encode(), digest_size=8).hexdigest()
        self._run_digest = hashlib.blake2b(ctx.run_id.encode(), digest_size=6).hexdigest()
        self._counted = self._ledger.counted_by(ctx, task)
        self._leaf = {"run": task, "key": f"{self._run_digest}_{task}", "day": f"{self._run_digest}_{task}"}

    @property
    def has_budgets(self) -> bool:
        """Whether anything is checked."""
        return bool(self._budgets)

    @property
    def counts_calls(self) -> bool:
        """Whether some budget counts calls: then a call that may have happened is one."""
        return any(budget.calls is not None for budget in self._budgets)

    async def reserve(self, estimate: Spent) -> None:
        """Check that a call may be made, and keep its estimated cost until `release`.

        Raises:
            BudgetExhausted: It would spend more than there is.
        """
        if not self._budgets:
            return
        await asyncio.sleep(0)  # tasks and branches that started with this one show what they have spent already
        for budget in self._budgets:
            spent = self._spent(budget.per)
            for place, counted in enumerate(_COUNTED):
                limit = getattr(budget, counted)
                if limit is not None and (spent[place] >= limit or spent[place] + estimate[place] > limit):
                    raise BudgetExhausted(f"{budget.per}.{counted}", limit, spent[place])
        self._ledger.reserved[self] = estimate

    def release(self) -> None:
        """Give back what was reserved, behind `count`: in between, nobody is to find it neither here nor there."""
        if self._budgets:
            self._ledger.reserved.pop(self, None)

    def count(self, spent: Spent, *, is_recorded: bool) -> None:
        """Count what a call has cost, whether it was made now or its outcome is from the journal."""
        if not self._budgets:
            return
        recorded = self._ledger.recorded.get(self._ctx.task_id)
        if is_recorded and recorded is not None and spent in recorded:
            recorded.remove(spent)
        self._counted.append(spent)
        for per in dict.fromkeys(budget.per for budget in self._budgets):
            memory, folder = self._folder(per)
            path = f"{folder}.{self._leaf[per]}"
            before = memory.get(path) or [0, 0, 0.0]
            entry = [a + b for a, b in zip(before, spent, strict=True)]
            memory.set(path, entry)
            self._ledger.entries[f"{per}:{path}"] = entry
            if per != "run":
                self._fold(memory, folder)

    def _folder(self, per: str) -> tuple[MemoryObject, str]:
        if per == "run":
            return self._ctx.sensory_memory, f"{_ROOT}.run"
        day = f".{self._ctx.now:%Y%m%d}" if per == "day" else ""
        return self._ctx.short_term_memory, f"{_ROOT}.{per}{day}"

    def _spent(self, per: str) -> Spent:
        memory, folder = self._folder(per)
        seen = {f"{folder}.{name}": entry for name, entry in _entries(memory, folder)}
        unseen = dict(self._of_group(per, folder))
        unseen.update(
            {
                path.partition(":")[2]: entry
                for path, entry in self._ledger.entries.items()
                if path.startswith(f"{per}:")
            }
        )
        entries = [*seen.values(), *(entry for path, entry in unseen.items() if path not in seen)]
        entries += self._ledger.reserved.values()
        entries += (call for calls in self._ledger.recorded.values() for call in calls)
        return [sum(column) for column in zip([0, 0, 0.0], *entries, strict=True)]

    def _of_group(self, per: str, folder: str) -> Iterator[tuple[str, Spent]]:
        """Return what tasks of the group have spent that have ended, and are not applied yet."""
        for member in self._run.group or ():
            if member.outcome is None:
                continue
            writes = member.outcome.sensory if per == "run" else member.outcome.writes
            for path, value in (writes or {}).items():
                if value is not None and path.startswith(f"{folder}."):
                    entry: Any = decode_value(value)
                    yield path, entry

    def _fold(self, memory: MemoryObject, folder: str) -> None:
        """Add up the entries of earlier runs, and forget days that are over."""
        if self._run.group is not None and self._run.group[0] is not self._ctx._task:  # noqa: SLF001
            return
        earlier = [(name, entry) for name, entry in _entries(memory, folder) if not name.startswith(self._run_digest)]
        if len(earlier) > _FOLD_AT:
            memory.set(
                f"{folder}.{_SUM}", [sum(column) for column in zip(*(entry for _, entry in earlier), strict=True)]
            )
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


def _ledger_of(run: Any) -> _Ledger:  # noqa: ANN401 (the operator's run)
    """Return the ledger of a run; the first one who asks in this process finds what the journal has of the run's tasks."""
    ledger = _ledgers.get(run)
    if ledger is None:
        ledger = _ledgers[run] = _Ledger()
        for task in run.tasks:
            calls = [] if task.recorded is None else [*map(_recorded_cost, task.recorded.steps.values())]
            ledger.recorded[task.id] = [call for call in calls if call is not None]
    return ledger


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
