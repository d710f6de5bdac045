"""How the tasks of a run start, fail, wait for a retry, and end in parallel groups.

Tasks run one after the other in routing order. Consecutive tasks of parallel actions form a **group**: its members start
together on one memory snapshot, and are applied in routing order when all have ended. A member that wrote a path which an
earlier member wrote fails with `MemoryConflict` when its turn comes; its next attempt starts behind those that are applied.
A member that ends its run (`dead-letter`) cancels the members behind it; those before it are applied first. So the result
does not depend on which member was faster.
"""

from __future__ import annotations

import heapq

from agentflow.api.failure import OnError
from agentflow.api.memory_codec import OBJECT
from agentflow.core.effects import CancelAction, Effect, ScheduleRetry, SkipTask, StartAction
from agentflow.core.failures import FailurePolicy, retry_wait_ms
from agentflow.core.records import ErrorReport
from agentflow.core.runs import (
    CANCELLED,
    COMPLETED,
    DEAD,
    PARKED,
    QUEUED,
    RUNNING,
    SKIPPED,
    WAITING,
    ActionTask,
    Run,
)
from agentflow.core.steps import Steps


class TaskScheduler:
    """Moves the tasks of runs; appends to the operator's effects."""

    def __init__(self, effects: list[Effect], policy: FailurePolicy, tasks_max: int, steps: Steps) -> None:
        self._effects = effects
        self._policy = policy
        self._tasks_max = tasks_max
        self._steps = steps
        self._recorded = steps.runs
        self._retries: list[tuple[int, int, ActionTask]] = []  # (due, order, task)
        self._retry_order = 0

    def start_next(self, run: Run, now_ms: int) -> bool:
        """Start the next task, or parallel group, of a run that has none; False when the run is over."""
        queue = run.queue
        while queue:
            task = queue.pop(0)
            if queue and task.action.is_parallel and queue[0].action.is_parallel:
                run.group = [task]
                while queue and queue[0].action.is_parallel:
                    run.group.append(queue.pop(0))
                for member in run.group:
                    if member.status == QUEUED:  # not cancelled by one before it that could not start
                        self._start_member(member, now_ms)
                return True
            run.current = task
            if task.error is None and run.tasks_started < self._tasks_max:
                run.tasks_started += 1
                task.status = RUNNING
                self._effects.append(self._steps.start(task) if self._recorded else StartAction(task))
                return True
            self._refuse(task, now_ms)
            if run.current is not None:
                return True
        return False

    def _start_member(self, task: ActionTask, now_ms: int) -> None:
        run = task.run
        if task.error is None and run.tasks_started < self._tasks_max:
            run.tasks_started += 1
            task.status, task.started_behind = RUNNING, run.applied
            self._effects.append(self._steps.start(task))
        else:
            self._refuse(task, now_ms)

    def _refuse(self, task: ActionTask, now_ms: int) -> None:
        """Fail a task that cannot start."""
        task.status = RUNNING
        error, task.error = task.error, None
        if error is None:
            message = f"the run started {self._tasks_max} action tasks (run.tasks-max): most likely a cycle of events"
            error = ErrorReport("RunLimitExceeded", message, is_retryable=False)
        self.fail(task, error, now_ms)

    # -- failure
    def fail(self, task: ActionTask, error: ErrorReport, now_ms: int) -> None:
        """Decide what follows a failed attempt: the next one, or the action's last resort."""
        self._steps.waits.drop(task)
        if error.is_retryable and task.attempt < task.action.retry.attempts:
            self._attempt_again(task, error, now_ms + retry_wait_ms(task))
            return
        run = task.run
        resort = self._policy.last_resort(task.action.on_error)
        if resort is OnError.FAIL and self._steps.is_failed_before(task):
            self._attempt_again(task, error, now_ms)  # whoever started the job again may have removed the cause
            return
        if resort is OnError.SKIP:
            task.status = SKIPPED
            self._effects.append(SkipTask(task, error))
        else:
            task.status, task.error = DEAD, error
        task.outcome = None
        if run.group is not None:
            if task.status == DEAD:
                self._cancel_behind(run, task)
        else:
            run.current = None
            if task.status == DEAD:
                self._bury(run, task)

    def _attempt_again(self, task: ActionTask, error: ErrorReport, due_ms: int) -> None:
        task.attempt += 1
        self.wait(task, due_ms)
        self._effects.append(ScheduleRetry(task, error, due_ms))

    def _cancel_behind(self, run: Run, task: ActionTask) -> None:
        assert run.group is not None
        place = run.group.index(task)
        for member in run.group[place + 1 :]:
            if member.status == RUNNING:
                self._effects.append(CancelAction(member))
            self._steps.waits.drop(member)
            member.status = CANCELLED
        run.group = run.group[: place + 1]

    def _bury(self, run: Run, task: ActionTask) -> None:
        """End the run by the policy of its dead task; what completed tasks did stays."""
        error = task.error
        assert error is not None
        if run.request is not None:
            run.request.fail(error)
        self._effects.append(self._policy.last_word(run.record, error, run, task))
        run.queue = run.group = None

    # -- retries
    def wait(self, task: ActionTask, due_ms: int) -> None:
        """Let a task wait for its next attempt."""
        task.status, task.due_ms = WAITING, due_ms
        heapq.heappush(self._retries, (due_ms, self._retry_order, task))
        self._retry_order += 1

    def next_retry_ms(self) -> int | None:
        """Return when the next attempt is due; None when no task waits."""
        while self._retries and not _is_live(self._retries[0]):
            heapq.heappop(self._retries)
        return self._retries[0][0] if self._retries else None

    def pop_due_retries(self, now_ms: int) -> list[ActionTask]:
        """Return the tasks whose next attempt is due, in due order; the caller starts them with `retry`."""
        due = []
        while (due_ms := self.next_retry_ms()) is not None and due_ms <= now_ms:
            due.append(heapq.heappop(self._retries)[2])
        return due

    def retry(self, task: ActionTask) -> None:
        """Start the next attempt of a waiting task."""
        task.status, task.due_ms, task.started_behind = RUNNING, 0, task.run.applied
        self._effects.append(self._steps.start(task))

    def resume(self, run: Run) -> bool:
        """Start again what was running before a restore, wait again for what was waiting; False: there is neither, nor parked."""
        is_going = False
        for task in run.tasks:
            if task.status == RUNNING:
                self.retry(task)
                is_going = True
            elif task.status == WAITING:
                self.wait(task, task.due_ms)
                is_going = True
            elif task.status == PARKED:
                is_going = True
        return is_going

    # -- parallel groups
    def next_to_apply(self, run: Run, now_ms: int) -> ActionTask | None:
        """Return the next member of a group to apply, once all members have ended.

        None when the group still runs (``run.group`` stays), or is done with (``run.group`` is None).
        """
        group = run.group
        assert group is not None
        if any(member.status in (QUEUED, RUNNING, WAITING, PARKED) for member in group):
            return None
        while run.applied < len(group):
            member = group[run.applied]
            if member.status == DEAD:
                run.applied, run.written = 0, None
                self._bury(run, member)
                return None
            if member.status == COMPLETED:
                path = self._conflict(run, member)
                if path is not None:
                    message = f"'{path}' was also written by a parallel task of this run that comes first"
                    self.fail(member, ErrorReport("MemoryConflict", message), now_ms)
                    return self.next_to_apply(run, now_ms) if member.status != WAITING else None
                self._note_writes(run, member)
                run.applied += 1
                return member
            run.applied += 1
        run.group, run.applied, run.written = None, 0, None
        return None

    def _conflict(self, run: Run, member: ActionTask) -> str | None:
        """Return the first path that an applied member wrote while ``member`` was at work."""
        others = [(o, leaf) for o, (place, leaf) in (run.written or {}).items() if place >= member.started_behind]
        for path, is_leaf in _written_paths(member).items():
            for other, is_other_leaf in others:
                if (
                    (path == other and (is_leaf or is_other_leaf))
                    or (is_leaf and other.startswith(f"{path}."))
                    or (is_other_leaf and path.startswith(f"{other}."))
                ):
                    return path.removeprefix(_SENSORY)
        return None

    def _note_writes(self, run: Run, member: ActionTask) -> None:
        run.written = dict(run.written or {})
        for path, is_leaf in _written_paths(member).items():
            run.written[path] = (run.applied, is_leaf)


def _is_live(retry: tuple[int, int, ActionTask]) -> bool:
    """Whether a task still waits for that time: it may have been tried before."""
    due_ms, _, task = retry
    return task.status == WAITING and task.due_ms == due_ms


_SENSORY = "\0"  # marks paths of sensory memory, which share no path with short-term memory


def _written_paths(task: ActionTask) -> dict[str, bool]:
    """Return the paths a completed task wrote, of both memories (sensory behind a marker)."""
    outcome = task.outcome
    assert outcome is not None
    paths = {path: _is_leaf(value) for path, value in (outcome.writes or {}).items()}
    paths.update((_SENSORY + path, _is_leaf(value)) for path, value in (outcome.sensory or {}).items())
    return paths


def _is_leaf(value: bytes | None) -> bool:
    """Whether a write cannot stand beside a write below its path; the mark of an object can."""
    return value is None or value[0] < OBJECT
