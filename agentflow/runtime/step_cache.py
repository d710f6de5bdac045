"""Results of steps that later runs of their key are given too, for a while: `cache` of `durable_execute`.

They are short-term memory, below one path: the function and its arguments name an entry, so a change of either is a miss. A result is
an outcome of the run that calls the step, wherever it comes from, so a replay gives the same one.
"""

from __future__ import annotations

import hashlib
from typing import Final

from agentflow.api.memory import MemoryObject
from agentflow.api.runner_context import RunnerContext
from agentflow.core.inputs import StepCall

CACHE_PATH: Final = "__cached_steps__"


def cached_result(ctx: RunnerContext, call: StepCall) -> bytes | None:
    """Return the encoded result of a call that is kept and not too old; the run's clock counts."""
    entry = ctx.short_term_memory.get(_path(call))
    return None if entry is None or entry[0] <= _now_ms(ctx) else bytes(entry[1])


def keep_result(ctx: RunnerContext, call: StepCall, result: bytes, cache_ms: int) -> None:
    """Keep the encoded result of a call, unless one is kept already; give up those of the key that are too old."""
    if cached_result(ctx, call) is not None or ctx._task.run.group is not None:  # noqa: SLF001 (members of a group would conflict)
        return
    memory, now_ms = ctx.short_term_memory, _now_ms(ctx)
    kept = memory.get(CACHE_PATH)
    if isinstance(kept, MemoryObject):
        for name in kept.get_field_names():
            if kept.get(name)[0] <= now_ms:
                kept.delete(name)
    memory.set(_path(call), [now_ms + cache_ms, result])


def _path(call: StepCall) -> str:
    name = hashlib.blake2b(call.function.encode(), key=call.digest, digest_size=16).hexdigest()
    return f"{CACHE_PATH}.{name}"


def _now_ms(ctx: RunnerContext) -> int:
    now_ms: int = ctx._task.run.admitted_ms  # noqa: SLF001 (the context's engine side)
    return now_ms
