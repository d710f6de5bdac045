"""One call of a durable step: where it is made, how it is made, and what it leaves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentflow.api.encoding import NOT_ENCODABLE, encode_msgpack
from agentflow.api.runner_context import RunnerContext
from agentflow.core.inputs import StepCall, StepEnded
from agentflow.core.journal_records import ATTEMPT, ERROR
from agentflow.errors import RecordTooLarge
from agentflow.runtime.observation import StepSeen, monotonic_ns
from agentflow.runtime.step_cache import keep_result
from agentflow.runtime.step_values import decode_result, describe_error, encode_error, encode_result
from agentflow.runtime.step_work import StepWork
from agentflow.runtime.task_steps import TaskSteps

if TYPE_CHECKING:
    from types import FrameType


def step_id(steps: TaskSteps, call: StepCall) -> str:
    """Return the id of a step: the same on every attempt, by every owner, and in every run of the record."""
    task = steps.task
    position = task.run.record.first_position
    return f"{position}/{task.path}{call.path}/{call.function}:{call.digest.hex()}"


def recordable(ctx: RunnerContext, call: StepCall, function: Callable[..., Any], result: object) -> bytes:
    """Return a result as the journal has it.

    Raises:
        NotRecordable: It would not come back as what it is.
        RecordTooLarge: Above `record-max`.
    """
    payload = encode_result(function, result)
    record_max = ctx._services.record_max  # noqa: SLF001 (the context's engine side)
    if len(payload) > record_max:
        raise RecordTooLarge(
            f"step {call.function} returned {len(payload):,} bytes",
            where={"called at": call.where},
            expected=f"at most {record_max:,} bytes (record-max)",
            fix="store it elsewhere, and return where",
        )
    return payload


def encoded_about(ctx: RunnerContext, name: str, about: object) -> bytes:
    """Return what people are shown of a wait, as its record has it.

    Raises:
        TypeError: It cannot be encoded.
        RecordTooLarge: Above `record-max`.
    """
    if about is None:
        return b""
    try:
        encoded = encode_msgpack(about)
    except NOT_ENCODABLE as error:
        msg = f"wait_for('{name}', about=…) cannot be encoded: {error}"
        raise TypeError(msg) from error
    record_max = ctx._services.record_max  # noqa: SLF001 (the context's engine side)
    if len(encoded) > record_max:
        raise RecordTooLarge(
            f"wait_for('{name}', about=…) has {len(encoded):,} bytes",
            expected=f"at most {record_max:,} bytes (record-max)",
            fix="say it shorter, or where it is",
        )
    return encoded


def answered(steps: TaskSteps, call: StepCall, work: StepWork, result: bytes) -> Any:  # noqa: ANN401 (a user's value)
    """Return a recorded result to user code."""
    if work.cache_ms is not None:
        keep_result(steps.ctx, call, result, work.cache_ms)
    return decode_result(work.function, result)


def failed(steps: TaskSteps, call: StepCall, work: StepWork, calls: int, error: BaseException) -> StepEnded:
    """Return how a call ended that raised: the step's outcome, or an attempt that another one follows."""
    retry = work.next_call(step_id(steps, call), calls, error)
    return StepEnded(steps.task, call, ERROR if retry is None else ATTEMPT, encode_error(error), retry)


def seen(ended: StepEnded, began_ns: int, calls: int) -> StepSeen:
    """Return how a call ended, for observers."""
    error = describe_error(ended.payload) if ended.kind in (ERROR, ATTEMPT) else ""
    return StepSeen(ended.task, ended.call, began_ns, monotonic_ns(), calls, error, is_final=ended.kind != ATTEMPT)


def place_of(frame: FrameType) -> str:
    """Return file and line, the file with its directory: it is in every record."""
    return _file_and_line(frame.f_code.co_filename, frame.f_lineno)


@functools.lru_cache(maxsize=4096)
def _file_and_line(file: str, line: int) -> str:
    return f"{'/'.join(file.split('/')[-2:])}:{line}"
