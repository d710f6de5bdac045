"""What a completed task does: its writes, its outputs, its events, its timers, all or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentflow.core.effects import Effect, EmitRecord, Headed
from agentflow.core.epoch import EpochChanges
from agentflow.core.inputs import ActionCompleted, ActionFailed, KeptWrites, SentEvent
from agentflow.core.records import ErrorReport, Headers
from agentflow.core.routing import Router
from agentflow.core.runs import ActionTask, Run
from agentflow.core.tasks import TaskScheduler
from agentflow.core.timers import TimerTable


class Outcomes:
    """Lets completed tasks happen: at once, or as members of a parallel group when all of it has ended."""

    def __init__(
        self,
        effects: list[Effect],
        changes: EpochChanges,
        router: Router,
        tasks: TaskScheduler,
        timers: TimerTable,
        timers_max: int,
        headed: Headed | None = None,
    ) -> None:
        self._effects = effects
        self._changes = changes
        self._router = router
        self._tasks = tasks
        self._timers = timers
        self._timers_max = timers_max
        self._headed = headed

    def take(self, task: ActionTask, outcome: ActionCompleted, now_ms: int) -> None:
        """Take the outcome of a task: apply it, or keep it until its group is applied; fail the task over a limit."""
        run = task.run
        if outcome.timers and len(self._timers) + len(outcome.timers) > self._timers_max:
            message = f"{len(self._timers)} timers are set (timer.pending-max)"
            self._tasks.fail(task, ErrorReport("RunLimitExceeded", message, is_retryable=False), now_ms)
        elif run.group is None:
            run.current = None
            self.apply(task, outcome)
        else:
            task.outcome = outcome

    def settle_group(self, run: Run, now_ms: int) -> bool:
        """Apply a parallel group in routing order once all its members have ended; whether the run can go on."""
        while (member := self._tasks.next_to_apply(run, now_ms)) is not None:
            assert member.outcome is not None
            self.apply(member, member.outcome)
        return run.group is None

    def emit_before_wait(
        self, task: ActionTask, sent: Sequence[SentEvent], headers: Mapping[int, Headers] | None
    ) -> None:
        """Let the outputs go that an action has sent before it waits; they are counted, and do not go again."""
        for index in range(task.emitted, len(sent)):
            event_type, payload = sent[index]
            if event_type is None:
                own = None if headers is None else headers.get(index)
                self._effects.append(EmitRecord(payload, task, index, task.run.record.timestamp_ms, own, self._headed))
                if task.run.request is not None:
                    task.run.request.outputs.append(payload)
        if len(sent) > task.emitted:
            task.emitted, task.left = len(sent), (sent, headers)

    def emit_again(self, failed: ActionFailed) -> None:
        """Let go what left before waits of a task whose failure the journal has, and the last checkpoint does not."""
        if failed.left is not None:
            self.emit_before_wait(failed.task, *failed.left)

    def keep(self, task: ActionTask, kept: KeptWrites | None) -> None:
        """Let happen what is kept of an attempt."""
        if kept is None:
            return
        run = task.run
        self._changes.before_change(run)
        self._changes.write(run.state, kept.short_term)
        if kept.sensory:
            run.sensory = {**(run.sensory or {}), **kept.sensory}

    def apply(self, task: ActionTask, outcome: ActionCompleted) -> None:
        """Let the outcome happen; the caller has taken it out of ``run.current``."""
        run = task.run
        if outcome.writes:
            self._changes.write(run.state, outcome.writes)
        if outcome.sensory:
            run.sensory = {**(run.sensory or {}), **outcome.sensory}
        if outcome.sent is not None:
            headers = outcome.headers
            for index, (event_type, payload) in enumerate(outcome.sent):
                if event_type is None:
                    if index >= task.emitted:  # else it left before a wait
                        own = None if headers is None else headers.get(index)
                        self._effects.append(
                            EmitRecord(payload, task, index, run.record.timestamp_ms, own, self._headed)
                        )
                        if run.request is not None:
                            run.request.outputs.append(payload)
                else:
                    self._router.route(run, task, index, event_type, payload)
        if outcome.timers is not None:
            for order in outcome.timers:
                self._timers.order(run.state.key, order, task.id)
        if run.queue or run.group is not None:
            if run.completed is None:
                run.completed = []
            run.completed.append(task.action.name)
