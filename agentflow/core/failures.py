"""What a failure leads to: the decision, and the dead letter."""

from __future__ import annotations

import base64
import zlib

import msgspec

from agentflow.api.failure import OnError
from agentflow.core.effects import DeadLetter, FailJob
from agentflow.core.records import FILE_HEADER, ErrorReport, Record
from agentflow.core.runs import ActionTask, Run
from agentflow.errors import JobFailed

_SHOWN_CHARS = 200


class FailurePolicy(msgspec.Struct, frozen=True):
    """The job's part of the failure policy.

    Attributes:
        job: Name of the job, for dead letters.
        agent: Name of the agent.
        has_dead_letters: Whether the job has a dead-letter sink: the default behind the last attempt.
        input_codec: Name of the codec of input values, which decides how one shows in a dead letter.
    """

    job: str
    agent: str
    has_dead_letters: bool
    input_codec: str = "json"

    def last_resort(self, on_error: OnError | None) -> OnError:
        """Return what follows the last attempt."""
        if on_error is not None:
            return on_error
        return OnError.DEAD_LETTER if self.has_dead_letters else OnError.FAIL

    def reason(self, record: Record, error: ErrorReport, run: Run | None, task: ActionTask | None) -> dict[str, str]:
        """Return the headers of a dead letter, or the fields of a job failure; nothing that is not known."""
        reason = {"job": self.job, "agent": self.agent}
        if task is not None:
            reason |= {"action": task.action.name, "task": task.path, "attempt": str(task.attempt)}
        if run is not None:
            reason["completed-tasks"] = ",".join(run.completed or ())
            reason["key"] = str(msgspec.msgpack.decode(run.key))
        reason |= {"error-type": error.type, "error-message": error.message, "source-position": record.run_id}
        file = next((value for name, value in record.headers if name == FILE_HEADER), None)
        if file is not None:
            reason["file"] = file.decode("utf-8", "replace")
        if record.timestamp_ms is not None:
            reason["original-timestamp"] = str(record.timestamp_ms)
        return reason

    def last_word(
        self, record: Record, error: ErrorReport, run: Run | None = None, task: ActionTask | None = None
    ) -> DeadLetter | FailJob:
        """Return what ends a record that cannot be processed: its dead letter, or the job's failure."""
        if self.last_resort(None if task is None else task.action.on_error) is OnError.FAIL:
            return FailJob(error, self.reason(record, error, run, task), task)
        return self.dead_letter(record, error, run, task)

    def dead_letter(
        self, record: Record, error: ErrorReport, run: Run | None = None, task: ActionTask | None = None
    ) -> DeadLetter:
        """Return the dead letter of a record, with a JSON document for sinks without headers."""
        reason = self.reason(record, error, run, task)
        document: dict[str, object] = dict(reason)
        if error.traceback:
            document["traceback"] = error.traceback
        is_source_value = run is None or not run.event_type.startswith("_timer")
        codec = "none" if record.fault is not None else self.input_codec if is_source_value else "msgpack"
        document |= _readable(record.value, codec)
        return DeadLetter(record, error, reason, msgspec.json.encode(document), task)


def _readable(value: bytes | None, codec: str) -> dict[str, object]:
    """Return a record's value as it can stand in JSON: decoded, else as text, else in base64."""
    if value is None:
        return {"value": None}
    try:
        if codec == "json":
            msgspec.json.decode(value)
            return {"value": msgspec.Raw(value)}
        if codec == "msgpack":
            return {"value": msgspec.to_builtins(msgspec.msgpack.decode(value), str_keys=True)}
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return {"value-text": value.decode()}
    except UnicodeDecodeError:
        return {"value-base64": base64.b64encode(value).decode()}


def _short(text: str) -> str:
    """Return a place as it can be read: that of a task behind many others has thousands of characters."""
    half = _SHOWN_CHARS // 2
    return text if len(text) <= _SHOWN_CHARS else f"{text[:half]}…{text[-half:]}"


def retry_wait_ms(task: ActionTask) -> int:
    """Return how long to wait before the next attempt; the jitter derives from the task's id, so a replay agrees."""
    fraction = zlib.crc32(f"{task.id}#{task.attempt}".encode()) / 2**32
    return task.action.retry.wait_ms(task.attempt, fraction)


def job_failure(effect: FailJob) -> JobFailed:
    """Return the error that ends a job by its failure policy."""
    reason, error = dict(effect.reason), effect.error
    reason.pop("error-type", None)
    reason.pop("error-message", None)
    attempts = reason.pop("attempt", None)
    what = f"action '{reason['action']}' of agent '{reason['agent']}' failed" if "action" in reason else "bad input"
    tries = f" {attempts} times (last:" if attempts and int(attempts) > 1 else " ("
    failure = JobFailed(
        f"{what}{tries} {error})".replace("( ", "("),
        where={name: _short(value) for name, value in reason.items() if value},
        fix="configure dead-letter, or on_error='skip' or 'dead-letter' for the action, to go on without such records",
    )
    failure.user_traceback = error.traceback
    return failure
