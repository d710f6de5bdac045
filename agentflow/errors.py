"""Every exception of agentflow.

The tree (a class carries its recovery as data: what the engine does when it meets it):

    AgentflowError
    ├── ConfigError            all problems at once: a job file, an option, an environment variable
    ├── PlanError              all problems at once: an agent that cannot be compiled
    ├── NotConfigured          a feature was used that this job does not have
    ├── InternalError          an invariant of ours is broken: a bug report, never user input
    ├── ContextClosed          a RunnerContext was used after its action had ended
    ├── RecordError            one record or one run cannot go on (failure policy of the action, no retry)
    │   ├── DecodeError        the value is not what the source or the action says it is
    │   ├── MissingKey         `key-by` found no key in the record
    │   ├── RecordTooLarge     `record-max`
    │   ├── ValueTooLarge      `state.value-max`
    │   ├── KeyOverflow        `key.pending-max` with `on-overflow: dead-letter`
    │   ├── RunLimitExceeded   `run.tasks-max`
    │   ├── Divergence         an action called other steps than those that are recorded of it
    │   ├── InDoubt            a step's call may have happened, and nobody can tell
    │   ├── NotRecordable      arguments or result of a step that would not come back as what they are
    │   ├── WrongContext       a durable step was called where it cannot work
    │   ├── BudgetExhausted    a call of a model would spend more than a budget has left
    │   ├── MissingPromptVariable   a placeholder of a prompt has no value
    │   ├── ToolArgumentsInvalid    a model called a tool with arguments that it does not take
    │   ├── OutputInvalid      the answer of a model does not fit the schema that was asked for
    │   └── ConditionError     a CEL condition failed for another reason than a missing attribute
    ├── ActionError            an action did not complete (failure policy of the action, with retry)
    │   ├── ActionTimeout      `timeout=` of the action
    │   ├── StepFailed         a recorded error of a step, whose own class is not known
    │   ├── ToolFailed         the server of a tool says that the call failed
    │   ├── ToolServerUnavailable   no connection to it, no answer in time, or it died in the call
    │   ├── ModelError         a call of a model failed
    │   │   ├── ModelUnavailable   it may work later: no connection, a timeout, 5xx
    │   │   │   ├── RateLimited    too many calls or tokens (429)
    │   │   │   └── CircuitOpen    the connection has failed too often, so it was not called
    │   │   └── ModelRejected  it will not: 4xx, no credentials, an unknown model
    │   │       ├── ContextTooLong     the conversation is longer than the model takes
    │   │       └── ContentRefused     the provider refuses what was said
    │   └── MemoryConflict     two parallel tasks wrote one path
    ├── StateError             keyed state
    │   ├── StateUnavailable   an I/O error; the subtask restarts from the last completed checkpoint
    │   ├── StateForbidden     the directory may not be used by this user, or is none: a restart cannot cure it
    │   ├── DiskFull           no space; the subtask restarts, the last completed checkpoint is intact
    │   ├── StateCorrupted     a file of the state directory is damaged
    │   ├── StateLocked        another process owns the directory
    │   ├── StateVersionTooNew the directory was written by a newer agentflow
    │   └── StateMismatch      the directory belongs to another job, or to another shape of this one
    ├── SourceError            the input cannot be read (missing, shorter than its position, not readable twice)
    │   ├── SourceUnavailable  the source does not answer any more; the worker joins its group again
    │   └── PartitionCountChanged   an input topic has another number of partitions than the job's state
    ├── SinkError              the output cannot be written; the subtask restarts
    │   ├── OutputExists       the output of this checkpoint is there already: another job's, or of state that was removed
    │   ├── OutputLocked       another job writes there
    │   ├── SchemaMismatch     an output does not fit the columns of a table
    │   └── SinkForbidden      the place may not be written, is none, or nobody reads it any more: a restart cannot cure it
    ├── RequestError           a request to an embedded engine gets no outputs
    │   ├── RunFailed          its run ended early: its action failed for good, or it was cancelled
    │   ├── EngineOverloaded   a limit is reached, and the caller does not want to wait
    │   ├── EngineClosed       the engine has ended, or drains
    │   ├── RequestMismatch    its id is that of another request
    │   ├── UnknownWait        nobody waits for that answer, or not any more
    │   ├── RequestLost        the subtask restarted between the end of the run and its answer
    │   └── UnknownRun         there is no such run, or its result is not kept any more
    ├── MetricsUnreachable     no process of agentflow answers where its metrics were looked for
    ├── JobFailed              the job stopped: an action with `on_error="fail"`, or bad input without a dead-letter sink
    └── RestartsExhausted      the restart strategy gave up
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import ClassVar


class Recovery(enum.Enum):
    """What the engine does about an error."""

    RETRY = "retry"  # the action runs again, by its retry policy
    FAIL_RECORD = "fail-record"  # the run ends by the failure policy, without a retry
    RESTART_SUBTASK = "restart-subtask"  # memory is dropped, the last completed checkpoint is restored
    FAIL_JOB = "fail-job"  # the job stops; a person is needed


class AgentflowError(Exception):
    """Root of all errors. The fields come first; the text is built from the fields.

    Args:
        what: What happened, one sentence without the place.
        where: The place as ``name=value`` pairs in reading order (job, agent, action, key, record, file, line …).
        expected: What would have been right.
        fix: What to do next.
    """

    recovery: ClassVar[Recovery] = Recovery.FAIL_JOB

    def __init__(self, what: str, *, where: dict[str, object] | None = None, expected: str = "", fix: str = "") -> None:
        self.what = what
        self.where = dict(where or {})
        self.expected = expected
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append("  " + "  ".join(f"{name} {value}" for name, value in self.where.items()))
        if self.expected:
            lines.append(f"expected: {self.expected}")
        if self.fix:
            lines.append(f"help: {self.fix}")
        return "\n".join(lines)


class _Problems(AgentflowError):
    """Several problems reported at once; ``problems`` holds one text each."""

    title: ClassVar[str] = ""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{self.title}: {len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}")

    def __str__(self) -> str:
        return "\n".join(self.problems) if len(self.problems) == 1 else "\n".join([self.what, *self.problems])


class ConfigError(_Problems):
    """The configuration is wrong; all problems are listed, each with file, line and the nearest valid key."""

    title = "configuration"


class PlanError(_Problems):
    """The agent cannot be compiled into a plan; all problems are listed."""

    title = "agent"


class NotConfigured(AgentflowError):
    """A feature was used that this job does not have. Never a silent pass-through."""

    recovery = Recovery.FAIL_RECORD


class InternalError(AgentflowError):
    """An invariant of the engine is broken. The operator that raised it refuses every later input."""

    recovery = Recovery.RESTART_SUBTASK


class ContextClosed(AgentflowError):
    """A RunnerContext was used after its action had ended, timed out or been cancelled."""

    recovery = Recovery.FAIL_RECORD


class RecordError(AgentflowError):
    """One record, or one run, cannot go on; others are not touched."""

    recovery = Recovery.FAIL_RECORD


class DecodeError(RecordError):
    """A value is not what the source or the action declares."""


class MissingKey(RecordError):
    """`key-by` found no key in the record."""


class RecordTooLarge(RecordError):
    """A record, an event or an output is above `record-max`."""


class ValueTooLarge(RecordError):
    """A memory value is above `state.value-max`."""


class KeyOverflow(RecordError):
    """More inputs wait behind one busy key than `key.pending-max` allows."""


class RunLimitExceeded(RecordError):
    """One run started more action tasks than `run.tasks-max`: most likely a cycle of events."""


class ConditionError(RecordError):
    """A CEL condition could not be evaluated (a missing attribute is no error: it does not match)."""


class Divergence(RecordError):
    """An action called another step than the one that is recorded there, or did not call one that is."""


class InDoubt(RecordError):
    """A step's call was about to happen when its process died: its policy is not to call again."""


class NotRecordable(RecordError, TypeError):
    """Arguments or the result of a step cannot be recorded. No retry: it would call again, and come to the same."""


class WrongContext(RecordError):
    """A durable step was called where it cannot work."""


class BudgetExhausted(RecordError):
    """A call of a model would spend more than a budget has left; it was not made.

    Attributes:
        budget: Which one: ``per`` and what it counts, such as ``run.calls``.
        limit: What it allows.
        spent: What is spent.
    """

    def __init__(self, budget: str, limit: float, spent: float) -> None:
        per, counted = budget.split(".")
        super().__init__(
            f"the budget of {limit:g} {counted} per {per} is spent ({spent:g})",
            fix="raise the budget of the chat model, or listen to EventType.BudgetExhaustedEvent to end the run in your way",
        )
        self.budget, self.limit, self.spent = budget, limit, spent
        self.args = (budget, limit, spent)


class MissingPromptVariable(RecordError):
    """A placeholder of a prompt has no value.

    Attributes:
        variable: The placeholder.
        prompt: Name of the prompt; empty: it has none.
    """

    def __init__(self, variable: str, prompt: str, given: Sequence[str]) -> None:
        super().__init__(
            f"prompt{f' {prompt!r}' if prompt else ''} has the placeholder {{{variable}}}, and no value for it",
            expected=f"'{variable}' among its arguments ({', '.join(given) or 'none are given'})",
            fix=f"give it (a request: in prompt_args), or write {{{{{variable}}}}} for literal braces",
        )
        self.variable, self.prompt = variable, prompt
        self.args = (variable, prompt, list(given))


class ToolArgumentsInvalid(RecordError):
    """A model called a tool with arguments that it does not take; the tool was not called, and the model is told."""

    def __init__(self, tool: str, why: str) -> None:
        super().__init__(f"the arguments for tool '{tool}' are wrong: {why}")
        self.tool, self.why = tool, why


class OutputInvalid(RecordError):
    """The answer of a model does not fit the schema that was asked for, also after it was told why.

    Attributes:
        answer: The model's last answer.
    """

    def __init__(self, why: str, answer: str) -> None:
        super().__init__(
            f"the model's answer does not fit the output schema: {why}",
            fix="simplify the schema, raise max_retries of the chat model, or take a model with native structured output",
        )
        self.why, self.answer = why, answer


class ActionError(AgentflowError):
    """An action did not complete."""

    recovery = Recovery.RETRY


class ActionTimeout(ActionError):
    """An action ran longer than its ``timeout=``."""


class StepFailed(ActionError):
    """A recorded error of a step, whose own class is neither Python's nor declared by the agent.

    Attributes:
        original: Module and qualified name of its class.
        original_text: Its text.
        traceback: The user's part of its traceback, as text; empty where there is none.
    """

    def __init__(self, what: str, *, original: str, original_text: str, traceback: str) -> None:
        is_ours = original.startswith("agentflow.")  # whose fix is in its text
        super().__init__(
            what, fix="" if is_ours else "declare its class in Agent(errors=[…]), to catch it as what it is"
        )
        self.original = original
        self.original_text = original_text
        self.traceback = traceback


class ToolFailed(ActionError):
    """The server of a tool says that the call failed; the text is the server's, for the model."""


class ToolServerUnavailable(ActionError):
    """The server of a tool does not answer: no connection, no answer in time, or it died in the call.

    Attributes:
        server: Its name.
        why: What happened.
    """

    def __init__(self, server: str, why: str) -> None:
        super().__init__(f"the server of tools '{server}' is not available: {why}")
        self.server, self.why = server, why
        self.args = (server, why)


class MemoryConflict(ActionError):
    """Two parallel tasks of one run wrote the same memory path; the later one fails."""


class ModelError(ActionError):
    """A call of a model failed. It is recorded as what it is, so a replay raises the same.

    Attributes:
        provider: ``gen_ai.provider.name`` of the connection.
        model: Name of the model.
        status: HTTP status of the answer; None: there was none.
        retry_after_s: What the provider says how long to wait, seconds; None: nothing.
        idempotency_key: What the call was sent with.
    """

    recovery = Recovery.FAIL_RECORD  # the calls of a model are retried where they are made: not the action with them

    def __init__(
        self,
        what: str,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
        idempotency_key: str = "",
    ) -> None:
        where = {"provider": provider, "model": model, "status": status}
        super().__init__(what, where={name: value for name, value in where.items() if value})
        self.provider, self.model, self.status = provider, model, status
        self.retry_after_s, self.idempotency_key = retry_after_s, idempotency_key
        self.args = (what, provider, model, status, retry_after_s, idempotency_key)


class ModelUnavailable(ModelError):
    """It may work later: no connection, a timeout, an answer that was cut, 5xx."""

    recovery = Recovery.RETRY


class RateLimited(ModelUnavailable):
    """The provider has had too many calls or tokens (429)."""


class CircuitOpen(ModelUnavailable):
    """The connection has failed so often that it is not called for a while; this call was not made."""


class ModelRejected(ModelError):
    """It will not work: wrong credentials, an unknown model, a request that the provider does not take (4xx)."""


class ContextTooLong(ModelRejected):
    """The conversation is longer than the model takes."""


class ContentRefused(ModelRejected):
    """The provider refuses what was said, or to say it."""


class StateError(AgentflowError):
    """Keyed state cannot be read or written."""


class StateUnavailable(StateError):
    """An I/O error of the state directory that a restart may cure."""

    recovery = Recovery.RESTART_SUBTASK


class StateForbidden(StateError):
    """The state directory may not be used by this user, is on a read-only file system, or is no directory."""


class DiskFull(StateError):
    """No space is left. The last completed checkpoint is intact."""

    recovery = Recovery.RESTART_SUBTASK


class StateCorrupted(StateError):
    """A file of the state directory is damaged. It is never re-created silently."""


class StateLocked(StateError):
    """Another process, or another job of this process, owns the state directory."""


class StateVersionTooNew(StateError):
    """The state directory was written by a newer version of agentflow."""


class StateMismatch(StateError):
    """The state directory belongs to another job, or the job's shape changed under unfinished runs."""


class SourceError(AgentflowError):
    """The input cannot be read."""


class SourceUnavailable(SourceError):
    """The source does not answer, or does not any more."""

    recovery = Recovery.RESTART_SUBTASK


class PartitionCountChanged(SourceError):
    """An input topic got partitions: keys lie elsewhere than their memory."""


class SinkError(AgentflowError):
    """The output cannot be written."""

    recovery = Recovery.RESTART_SUBTASK


class OutputExists(SinkError):
    """The place holds outputs of another job, or of state that was removed; they are never overwritten."""

    recovery = Recovery.FAIL_JOB


class OutputLocked(SinkError):
    """Another job, or another process of this one, writes to the place."""

    recovery = Recovery.FAIL_JOB


class SchemaMismatch(SinkError):
    """An output does not fit the columns of the table that it goes to. The last completed checkpoint is intact."""

    recovery = Recovery.FAIL_JOB


class SinkForbidden(SinkError):
    """The place may not be written by this user, is no place for outputs, or its reader has gone."""

    recovery = Recovery.FAIL_JOB


class RequestError(AgentflowError):
    """A request to an embedded engine gets no outputs; the engine itself goes on."""

    recovery = Recovery.FAIL_RECORD


class RunFailed(RequestError):
    """The run of a request ended early. The same request id gets the same error.

    Attributes:
        run_id: The run.
        error_type: Class name of the error (``KeyError``); ``RunCancelled`` of a run that was cancelled.
        error_message: Its text.
        outputs: What the run had sent before, decoded.
    """

    def __init__(self, run_id: str, error_type: str, error_message: str, outputs: Sequence[object] = ()) -> None:
        self.run_id = run_id
        self.error_type = error_type
        self.error_message = error_message
        self.outputs = list(outputs)
        text = f"{error_type}: {error_message}" if error_message else error_type
        super().__init__(f"the run of the request ended early: {text}", where={"run": run_id})


class EngineOverloaded(RequestError):
    """The engine has as many unfinished runs, or the key as many waiting inputs, as it may have."""

    recovery = Recovery.RETRY


class EngineClosed(RequestError):
    """The engine has ended, or drains. What it has accepted goes on when it is started again."""

    recovery = Recovery.RETRY


class RequestMismatch(RequestError):
    """Another request was submitted with the same id."""


class RequestLost(RequestError):
    """The run has ended, and its answer fell into a restart; one with a request id can be asked for again."""


class UnknownRun(RequestError):
    """There is no such run, its answer is not kept, or not any more."""


class UnknownWait(RequestError):
    """There is no such wait for a person's answer, or it has ended."""


class MetricsUnreachable(AgentflowError):
    """No process of agentflow answers where its metrics were looked for."""


class JobFailed(AgentflowError):
    """The job stopped on purpose: the failure policy said ``fail``. The last completed checkpoint is intact."""

    user_traceback: str = ""
    """The user's part of the traceback; empty where there is none."""


class RestartsExhausted(AgentflowError):
    """The restart strategy gave up; ``__cause__`` is the last failure."""
