"""What the server answers: replies, faults, and who decides which."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from agentflow.errors import ConfigError

if TYPE_CHECKING:
    from agentflow.testing.model_server.request import ModelRequest

FinishReason = Literal["", "stop", "length", "tool_calls", "refusal", "content_filter"]


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens as they are counted here; each provider reports them in its own way.

    Attributes:
        input: All that was read, cached and cache-written tokens included.
        output: All that was written, reasoning included.
        cached: Of the input, read from a cache.
        cache_written: Of the input, written to a cache (Anthropic and Bedrock report it, OpenAI since version 3).
        reasoning: Of the output.
    """

    input: int = 10
    output: int = 5
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of a tool that the model asks for.

    Attributes:
        arguments: A string is sent as it is: what no JSON is shows how a client takes it. Where the protocol carries an object, not
            text, the provider's own failure takes its place (see the protocols' modules).
        id: Empty: ``call_<number of the request>_<place>``.
    """

    name: str
    arguments: dict[str, Any] | str = msgspec.field(default_factory=dict)
    id: str = ""

    @property
    def arguments_text(self) -> str:
        """As JSON, or what stands in its place."""
        return self.arguments if isinstance(self.arguments, str) else msgspec.json.encode(self.arguments).decode()


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer of a model.

    Attributes:
        finish_reason: Empty: `tool_calls` if there are any, else `stop`. A `refusal` has its words in ``text``.
        chunk_count: Pieces into which a stream cuts each text, reasoning and tool call.
        latency_ms: Before the answer; None: the server's.
        chunk_latency_ms: Before each piece of a stream; None: the server's.
    """

    text: str = ""
    tool_calls: Sequence[ToolCall] = ()
    reasoning: str = ""
    usage: Usage = Usage()
    finish_reason: FinishReason = ""
    chunk_count: int = 4
    latency_ms: int | None = None
    chunk_latency_ms: int | None = None

    @property
    def ended_by(self) -> FinishReason:
        """Why the model stopped."""
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")


class Fault(msgspec.Struct, frozen=True, tag_field="fault", forbid_unknown_fields=True):
    """Something that goes wrong instead of a reply; one of the classes below.

    Wrong arguments of a tool, a text that does not fit its schema, and a refusal are replies.
    """


class HttpError(Fault, frozen=True, tag="http-error"):
    """An error of the provider, in its own shape.

    Attributes:
        code: Of the provider; empty: what it says for the status.
        message: Empty: what the provider would say.
        retry_after_s: As ``Retry-After``.
        retry_after_ms: As ``retry-after-ms``.
    """

    status: int
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None
    retry_after_ms: int | None = None
    latency_ms: int | None = None


class ContextTooLong(Fault, frozen=True, tag="context-too-long"):
    """The input does not fit the model's context."""


class Unauthorized(Fault, frozen=True, tag="unauthorized"):
    """The key is refused, and the text of the error shows it."""


class Dropped(Fault, frozen=True, tag="dropped"):
    """The connection ends before an answer."""


class Hung(Fault, frozen=True, tag="hung"):
    """There is never an answer."""


class Stalled(Fault, frozen=True, tag="stalled"):
    """A stream does not go on after some pieces, or an answer after half of its body."""

    after_chunks: int = 1
    reply: Reply = Reply("the rest of this never comes")


class Cut(Fault, frozen=True, tag="cut"):
    """The connection ends after some pieces of a stream, or in the middle of a body."""

    after_chunks: int = 1
    reply: Reply = Reply("the rest of this never comes")


class StreamFailed(Fault, frozen=True, tag="stream-failed"):
    """The provider tells of an error within a stream that has begun; without a stream: the error alone."""

    after_chunks: int = 1
    status: int = 529
    reply: Reply = Reply("the rest of this never comes")


class MalformedBody(Fault, frozen=True, tag="malformed-body"):
    """A body, or a piece of a stream, that cannot be decoded."""

    reply: Reply = Reply("this cannot be decoded")


AnyFault = HttpError | ContextTooLong | Unauthorized | Dropped | Hung | Stalled | Cut | StreamFailed | MalformedBody
Decide = Callable[["ModelRequest"], Reply | Fault | Awaitable[Reply | Fault]]
Answer = Reply | Fault | Sequence[Reply | Fault] | Decide | None
"""Always the same; one after another; what a function decides (also a coroutine function); None: what the user has said last."""

_USED_UP = "the model server has no reply left: all {} of its list are given, and this is request {}"


class Script:
    """Decides what each request is answered.

    Args:
        answer: See `Answer`. Embeddings take nothing of a list: they are computed.
    """

    def __init__(self, answer: Answer) -> None:
        self.fixed = answer if isinstance(answer, Reply) else None
        self._answer = answer
        self._given = 0

    def reset(self) -> None:
        """Begin a list again."""
        self._given = 0

    async def decide(self, request: ModelRequest) -> Reply | Fault:
        """Return the answer to a request."""
        answer = self._answer
        if isinstance(answer, Reply | Fault):
            return answer
        if callable(answer):
            decided = answer(request)
            return await decided if inspect.isawaitable(decided) else decided
        if answer is None:
            return Reply(next((one.text for one in reversed(request.messages) if one.role == "user"), ""))
        if request.api == "embeddings":
            return Reply()
        if self._given == len(answer):
            return HttpError(400, message=_USED_UP.format(len(answer), request.number))
        self._given += 1
        return answer[self._given - 1]


def read_replies(path: Path) -> list[Reply | Fault]:
    """Read a list of replies and faults: ``[{"text": "hi"}, {"fault": "http-error", "status": 429}]``.

    Raises:
        ConfigError: It is no such list.
    """
    try:
        items = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        return [msgspec.convert(one, AnyFault if "fault" in one else Reply) for one in items]
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError([f"{path}: no list of replies: {error}"]) from error


def read_script(place: str) -> Decide:
    """Return the function that ``FILE.py:function`` names.

    Raises:
        ConfigError: There is none.
    """
    file, _, name = place.rpartition(":")
    try:
        found = runpy.run_path(file).get(name)
    except OSError as error:
        raise ConfigError([f"--script {place}: {error.strerror}"]) from error
    if not callable(found):
        raise ConfigError([f"--script {place}: the file has no function '{name}'"])
    decide: Decide = found
    return decide
