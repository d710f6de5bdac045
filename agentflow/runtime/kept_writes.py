"""What is kept of an attempt whatever becomes of it, as user code's context has it."""

from __future__ import annotations

from agentflow.api.runner_context import RunnerContext
from agentflow.core.inputs import KeptWrites


def kept_of(ctx: RunnerContext) -> KeptWrites | None:
    """Return the writes of an attempt that happen also if it does not complete; None: there are none."""
    short_term, sensory = ctx._short_term, ctx._sensory  # noqa: SLF001 (the context's engine side)
    has_short_term = short_term is not None and short_term.kept is not None
    has_sensory = sensory is not None and sensory.kept is not None
    if not (has_short_term or has_sensory):
        return None
    return KeptWrites(
        short_term.encoded_kept() if has_short_term else {},  # type: ignore[union-attr]
        sensory.encoded_kept() if has_sensory else {},  # type: ignore[union-attr]
    )
