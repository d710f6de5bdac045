"""People outside the simulated machine, whom runs ask and who answer by a signal, once, in their own time.

Laws: who waits gets the answer to the own question; what a wait has shown is what it shows for ever; nobody who is answered waits on.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from agentflow.runtime.signals import encode_signal

if TYPE_CHECKING:
    from agentflow.api.runner_context import RunnerContext
    from agentflow.testing.faults import SignalBox

_NOBODY = "nobody"


class People:
    """See the module's docstring. They survive every crash.

    Args:
        seed: Decides how long they take.
        box: Where their signals go.
    """

    def __init__(self, seed: str, box: SignalBox) -> None:
        self.violations: list[str] = []
        self._luck = random.Random(seed)  # noqa: S311 (the seed of a simulation)
        self._box = box
        self._open: dict[str, tuple[object, str]] = {}  # question → key, agent
        self._answered: set[str] = set()
        self._seen: dict[str, object] = {}

    def wake_up(self) -> None:
        """Think of all open questions again: the clock that they looked at is gone."""
        for question in list(self._open):
            self._think(question)

    async def ask(self, ctx: RunnerContext, agent: str, place: str, timeout: str | None) -> None:  # noqa: ASYNC109 (it is recorded)
        """Let an action ask, and wait for the answer: with a timeout perhaps in vain."""
        question = f"{ctx.task_id}/{place}"
        if question not in self._answered and question not in self._open:
            self._open[question] = (ctx.key, agent)
            self._think(question)
        answer = await ctx.wait_for("answer", correlation=question, timeout=timeout, default=_NOBODY)
        if answer != f"to {question}" and (timeout is None or answer != _NOBODY):
            self.violations.append(f"question {question} got {answer!r}")
        if self._seen.setdefault(question, answer) != answer:
            self.violations.append(f"question {question} shows another answer than before")

    def _think(self, question: str) -> None:
        asyncio.get_running_loop().call_later(self._luck.choice([0, 0.001, 0.004, 0.05]), self._answer, question)

    def _answer(self, question: str) -> None:
        if question in self._open:
            key, agent = self._open.pop(question)
            self._answered.add(question)
            self._box.append(encode_signal(key, "answer", f"to {question}", correlation=question, agent=agent))
