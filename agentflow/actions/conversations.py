"""Conversations of the built-in actions, in sensory memory: what was asked, and the messages of each turn as an entry of its own.

__chat__.REQUEST.request        what the request says: model, prompt_args, output_schema, tenant, stream; how many messages it has (history)
__chat__.REQUEST.turns.N        messages that were added together; appended, never written again
__chat__.REQUEST.retries        [calls that were made again, seconds waited for that]
__chat_tools__.TOOL_REQUEST     id of the request whose model wants the tools

Requests and turns are msgpack: nobody else reads them, and they are written as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from agentflow.actions.model_calls import Retries
from agentflow.api.chat_messages import ChatMessage
from agentflow.api.runner_context import RunnerContext


class Conversation:
    """One conversation of a run.

    Args:
        ctx: Context of the task.
        request_id: Id of the event that began it.
    """

    def __init__(self, ctx: RunnerContext, request_id: str) -> None:
        self._memory = ctx.sensory_memory
        self._path = f"__chat__.{_digest(request_id)}"
        self._count = 0  # turns that are known

    @classmethod
    def of_tools(cls, ctx: RunnerContext, tool_request_id: str) -> tuple[str, Conversation] | None:
        """Return the conversation, with its id, whose model has asked for tools by this event; None: none has."""
        request_id = ctx.sensory_memory.get(f"__chat_tools__.{_digest(tool_request_id)}")
        return None if request_id is None else (request_id, cls(ctx, request_id))

    @property
    def request(self) -> dict[str, Any]:
        """What was asked."""
        request: dict[str, Any] = msgspec.msgpack.decode(self._memory.get(f"{self._path}.request"))
        return request

    def read(self) -> list[ChatMessage]:
        """Return all messages, oldest first."""
        self._count, found = 0, []
        while (turn := self._memory.get(self._next_turn)) is not None:
            found += _decode(turn)
            self._count += 1
        return found

    @property
    def retries(self) -> Retries:
        """Calls that were made again."""
        return Retries(*(self._memory.get(f"{self._path}.retries") or ()))

    def append(self, request: dict[str, Any] | None, messages: Sequence[ChatMessage], retries: Retries) -> None:
        """Add messages behind those that `read` has returned; what is there is not written again.

        Args:
            request: What was asked, with the first messages; None: it is known.
            messages: The messages.
            retries: Calls that were made again, so far.
        """
        if request is not None:
            self._memory.set(f"{self._path}.request", _encode(request))
        self._memory.set(self._next_turn, _encode(messages))
        self._count += 1
        if retries.count:
            self._memory.set(f"{self._path}.retries", [retries.count, retries.wait_s])

    def wants_tools(self, tool_request_id: str, request_id: str) -> None:
        """Note which event asks for tools, so that their response finds the conversation."""
        self._memory.set(f"__chat_tools__.{_digest(tool_request_id)}", request_id)

    def end(self) -> None:
        """Forget it."""
        self._memory.delete(self._path)

    @property
    def _next_turn(self) -> str:
        return f"{self._path}.turns.{self._count:06}"


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[ChatMessage]).decode


def _digest(event_id: str) -> str:
    return hashlib.blake2b(event_id.encode(), digest_size=8).hexdigest()
