"""Records on their way to the journal, and what goes on when they are there: the one place where durable comes before visible."""

from __future__ import annotations

from collections import deque

from agentflow.core.effects import AcknowledgeRequest, AnswerRequest, Effect, PersistStep, RunStep
from agentflow.core.inputs import JournalAppended
from agentflow.core.recorded import RecordedStep
from agentflow.core.runs import RUNNING, Request

_Waiter = RecordedStep | Request | None


class JournalQueue:
    """Appends the records of one operator; appends to the operator's effects what has waited for them."""

    def __init__(self, effects: list[Effect]) -> None:
        self._effects = effects
        # For each record who waits for it, None: nobody; between them effects that wait for all records before them.
        self._waiting: deque[_Waiter | RunStep | AcknowledgeRequest | AnswerRequest] = deque()

    def append(self, row: bytes, waiter: _Waiter = None) -> None:
        """Let a record be appended; whoever waits for it is told that it is durable, and what then follows happens."""
        self._waiting.append(waiter)
        self._effects.append(PersistStep(row))

    def behind(self, effect: RunStep | AcknowledgeRequest | AnswerRequest) -> None:
        """Let an effect happen when everything that was appended so far is durable."""
        if self._waiting:
            self._waiting.append(effect)
        else:
            self._effects.append(effect)

    def on_appended(self, received: JournalAppended, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        """Let go on what waited for the next records."""
        waiting, effects, count = self._waiting, self._effects, received.count
        while waiting:
            waiter = waiting[0]
            kind = type(waiter)
            if kind is AnswerRequest or kind is AcknowledgeRequest:
                effects.append(waiter)  # type: ignore[arg-type]
            elif kind is RunStep:
                if waiter.task.status == RUNNING:  # type: ignore[union-attr]
                    effects.append(waiter)  # type: ignore[arg-type]
            elif not count:
                return
            else:
                count -= 1
                if waiter is not None:
                    waiter.is_durable = True  # type: ignore[union-attr]
                    if kind is RecordedStep:
                        effect, waiter.then = waiter.then, None  # type: ignore[union-attr]
                        if effect is not None and effect.task.status == RUNNING:
                            effects.append(effect)
            waiting.popleft()
