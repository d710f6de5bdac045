"""Streams: what an action says while it works, before anything of it is durable.

    async def answer(event, ctx):
        message = await ctx.chat("assistant", event.input, stream=ctx.stream("answer"))     # tokens as they come
        ctx.send_event(OutputEvent(message.content))                                        # what counts

Chunks are transient: none survives the process, and a step that is answered from the journal has none. What counts is what the run sends
out. Until then a `reset` takes back what a call that failed, or was cut, has said, and an `end` confirms what a step has said.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

import msgspec

from agentflow.api.chat_models import ChatDelta


class ChunkKind(enum.StrEnum):
    """What a chunk is."""

    TEXT = "text"
    """A piece of text; of a model's answer, or what `Stream.write` was given."""
    REASONING = "reasoning"
    """A piece of a model's reasoning."""
    TOOL_CALL = "tool_call"
    """A piece of the arguments of a tool call."""
    VALUE = "value"
    """A value that `Stream.write` was given."""
    RESET = "reset"
    """What came of this step before is void: another attempt may follow. Without a step: of the whole run."""
    END = "end"
    """The outcome of the step is durable: what came of it since the last reset is final."""
    GAP = "gap"
    """Chunks are missing here: the reader was too slow for the buffer, or came too late."""


class StreamChunk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of what an action says while it works.

    Attributes:
        stream: Name of the stream (`ctx.stream`).
        run: Id of the run.
        step: Task and durable step that said it; the task alone: the action itself. Steps of a run may speak at the same time.
        attempt: Number of the call, from 1, as far as this process knows.
        offset: Counts the chunks of a run, in all of its streams, from 1; a process that takes a run up goes on at a higher number.
        kind: What it is.
        text: Of text, reasoning and tool calls.
        value: Of a value, as JSON has it.
        index: Which tool call of the answer, from 0.
        name: Name of the tool, with the first piece of a call.
    """

    stream: str
    run: str
    step: str
    attempt: int
    offset: int
    kind: ChunkKind
    text: str = ""
    value: Any = None
    index: int = 0
    name: str = ""


class Stream(Protocol):
    """What `ctx.stream` returns: something to write to, which never waits, and drops what nobody can take."""

    def write(self, piece: str | ChatDelta | Any) -> None:  # noqa: ANN401 (whatever JSON can carry)
        """Say something: a text, a piece of a model's answer, or any value that JSON can carry. From any thread.

        What is said behind the end of the action is dropped.

        Raises:
            TypeError, ValueError: The value cannot be encoded.
        """
        ...

    def begin_attempt(self, attempt: int) -> None:
        """Say that a call begins: what came of earlier ones of this step is void. `ctx.chat` does."""
        ...
