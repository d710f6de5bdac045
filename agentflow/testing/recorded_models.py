"""Chat models whose provider is asked once: what it answered is kept in files, and answered from them afterwards.

    agent.add_resource("recorded", ResourceType.CHAT_MODEL_CONNECTION,
        ResourceDescriptor("recorded", directory="tests/recordings", mode="auto", connection="openai"))

A setup whose ``connection`` is ``"recorded"`` keeps its own arguments. There is one JSON file per call, ``DIGEST-NUMBER.json``: request,
answer or error, and the pieces of the answer if it was streamed. The digest is that of what the model was told (model, messages, tools,
schema, options), not of how (idempotency key, headers), so the same conversation finds its files on every machine. Calls that ask the same
are numbered in their order. Files hold no credentials: no headers, no options with names of secrets, none of the secrets that the agent's
resources were built with. What people and tools have said is in them.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import BaseChatModelConnection, BaseChatModelSetup, ChatDelta, ChatRequest, OnDelta
from agentflow.api.resources import ResourceType
from agentflow.errors import (
    ConfigError,
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelRejected,
    ModelUnavailable,
    RateLimited,
)
from agentflow.runtime.redaction import Redaction
from agentflow.testing.scripted_models import stream_answer

Mode = Literal["replay", "record", "auto"]

_MODES: Final = ("replay", "record", "auto")
_KINDS: Final = {
    kind.__name__: kind
    for kind in (ModelError, ModelUnavailable, RateLimited, ModelRejected, ContextTooLong, ContentRefused)
}
_NOT_ASKED: Final = ("extra_headers", "extra_query")  # options that say how to ask
_DIFFERENCES_MAX: Final = 4
_SHOWN_BEFORE, _SHOWN_MAX = 20, 70  # characters of a text that differs


class _Failure(msgspec.Struct, omit_defaults=True):
    """An error of a provider, as it is recorded."""

    kind: str
    what: str
    provider: str = ""
    status: int | None = None
    retry_after_s: float | None = None


class _Recording(msgspec.Struct, omit_defaults=True):
    """One call.

    Attributes:
        request: What the model was told.
        has_native_output: Whether the provider makes this model answer by a schema; a replay has to ask in the same way.
        answer: What it said; None: there was an error.
        failure: The error.
        deltas: Pieces of the answer, if it was streamed.
    """

    request: dict[str, Any]
    has_native_output: bool
    answer: ChatMessage | None = None
    failure: _Failure | None = None
    deltas: list[dict[str, Any]] = []


class RecordedConnection(BaseChatModelConnection):
    """Answers from files, or asks another connection and keeps what it says.

    Attributes:
        directory: Where the files are; a relative path begins in the directory of the process.
        mode: ``replay``: from files alone. ``record``: ask, and replace what is recorded of the same request. ``auto``: replay what is
            recorded, ask and record the rest.
        connection: Name of the connection that is asked; not needed for ``replay``.
    """

    provider = "recorded"
    can_stream = True

    directory: str = "recordings"
    mode: Mode = "replay"
    connection: str = ""

    async def open(self) -> None:
        """Check the arguments.

        Raises:
            ConfigError: There is no such mode, or nobody to ask.
        """
        if self.mode not in _MODES:
            raise ConfigError([f"{self!r}: mode {self.mode!r} is none of {', '.join(_MODES)}"])
        if self.mode != "replay" and not self.connection:
            raise ConfigError(
                [f"{self!r}: mode '{self.mode}' needs connection=, the name of the connection that is asked"]
            )

    def supports_native_structured_output(self, model: str) -> bool:
        """Return what the recorded connection says."""
        known = self._native_outputs
        if model not in known:
            if self.mode == "replay":
                return False
            known[model] = self._asked_connection().supports_native_structured_output(model)
        return known[model]

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Return what is recorded, or ask and record it.

        Raises:
            ModelRejected: Only recordings count, and there is none of this call; the text shows the nearest one.
            ConfigError: A recording cannot be read.
            ModelError: As it was recorded, or as the connection raises it.
        """
        await self
        asked = _asked(request, self._scrub)
        digest = hashlib.blake2b(msgspec.json.encode(asked, order="sorted"), digest_size=8).hexdigest()
        self._calls[digest] += 1
        path = self._path(digest, self._calls[digest])
        if self.mode != "record" and path.exists():
            return await _replayed(_read(path), request, on_delta)
        if self.mode == "replay":
            raise ModelRejected(self._missing(asked, digest), self.provider, request.model)
        return await self._recorded(asked, digest, request, on_delta)

    async def _recorded(
        self, asked: dict[str, Any], digest: str, request: ChatRequest, on_delta: OnDelta | None
    ) -> ChatMessage:
        connection = self._asked_connection()
        recording = _Recording(asked, connection.supports_native_structured_output(request.model))

        def take(delta: ChatDelta) -> None:
            recording.deltas.append(_without_defaults(delta))
            if on_delta is not None:
                on_delta(delta)

        try:
            answer = await connection.complete(
                request, take if on_delta is not None and connection.can_stream else None
            )
        except ModelError as error:
            kind = next(kind for kind in type(error).__mro__ if kind.__name__ in _KINDS).__name__
            recording.failure = _Failure(kind, error.what, error.provider, error.status, error.retry_after_s)
            self._write(digest, recording)
            raise
        recording.answer = answer
        self._write(digest, recording)
        return answer

    # -- files
    @property
    def _calls(self) -> Counter[str]:
        """Calls so far, by digest."""
        calls: Counter[str] = self.__dict__.setdefault("_called", Counter())
        return calls

    @property
    def _native_outputs(self) -> dict[str, bool]:
        """By model: whether the provider makes it answer by a schema, as far as that is recorded."""
        known: dict[str, bool] | None = self.__dict__.get("_native")
        if known is None:
            recordings = () if self.mode == "record" else self._recordings()
            known = self.__dict__["_native"] = {
                recording.request["model"]: recording.has_native_output for _, recording in recordings
            }
        return known

    def _path(self, digest: str, number: int) -> Path:
        return Path(self.directory, f"{digest}-{number}.json")

    def _recordings(self) -> Iterator[tuple[Path, _Recording]]:
        for path in sorted(Path(self.directory).glob("*-*.json")):
            yield path, _read(path)

    def _write(self, digest: str, recording: _Recording) -> None:
        """Write a recording behind those of the same request; in mode ``record``, behind those that it has made itself."""
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        earlier = sorted(Path(self.directory).glob(f"{digest}-*.json"))
        made: Counter[str] = self.__dict__.setdefault("_made", Counter())
        made[digest] += 1
        path = self._path(digest, made[digest] if self.mode == "record" else len(earlier) + 1)
        plain = _each_text(msgspec.to_builtins(recording), self._scrub)
        staged = path.with_suffix(f".{os.getpid()}")
        staged.write_bytes(msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n")
        staged.replace(path)
        if self.mode == "record" and made[digest] == 1:
            for old in earlier:
                if old != path:
                    old.unlink(missing_ok=True)

    def _missing(self, asked: dict[str, Any], digest: str) -> str:
        """Return what is wrong with a call that is not recorded."""
        times = self._calls[digest]
        if times > 1:
            return f"the request is made {times} times, and recorded {times - 1} times in '{self.directory}': {digest}-*.json"
        nearest: tuple[tuple[int, float], Path, list[str]] | None = None
        for path, recording in self._recordings():
            differences = list(_differences(recording.request, asked))
            likeness = difflib.SequenceMatcher(None, str(recording.request), str(asked)).quick_ratio()
            found = ((len(differences), -likeness), path, differences)
            nearest = found if nearest is None or found[0] < nearest[0] else nearest
        if nearest is None:
            return f"there is no recording in '{self.directory}': record one with mode='record' and connection="
        _, path, differences = nearest
        shown = "".join(f"\n  {line}" for line in differences[:_DIFFERENCES_MAX])
        rest = len(differences) - _DIFFERENCES_MAX
        more = f"\n  and {rest} more" if rest > 0 else ""
        return f"the request is not recorded in '{self.directory}'; it differs from {path.name} in{shown}{more}"

    # -- who is asked
    def _asked_connection(self) -> BaseChatModelConnection:
        connection: BaseChatModelConnection = self.get_resource(self.connection, ResourceType.CHAT_MODEL_CONNECTION)
        return connection

    def _scrub(self, text: str) -> str:
        """Return a text without the secrets that the agent's resources were built with."""
        scrub: Callable[[str], str] | None = getattr(self.context, "scrub", None)
        return text if scrub is None else scrub(text)


class RecordedChatModel(BaseChatModelSetup):
    """A chat model with a `RecordedConnection` of its own.

    For a model with arguments of its provider, keep its setup, and let its ``connection`` be a `RecordedConnection`.

    Args:
        directory: Of the connection.
        mode: Of the connection.
        connection: Of the connection: who is asked.
        arguments: Of the setup: ``model``, ``prompt``, ``tools``, ….
    """

    def __init__(
        self,
        directory: str,
        *,
        mode: Mode = "replay",
        connection: str = "",
        **arguments: Any,  # noqa: ANN401 (those of a setup)
    ) -> None:
        BaseChatModelSetup.__init__(self, **{"connection": "recorded", **arguments})
        self._recorded = RecordedConnection(directory=directory, mode=mode, connection=connection)

    def get_connection(self) -> RecordedConnection:
        """Return the connection."""
        self._recorded.__dict__["context"] = self.context  # it asks for the other connection
        return self._recorded


def _asked(request: ChatRequest, scrub: Callable[[str], str]) -> dict[str, Any]:
    """Return what a model is told: what names a recording, and what a person reads in it."""
    options = {name: value for name, value in request.options.items() if name not in _NOT_ASKED}
    calls: dict[str, str] = {}
    asked: dict[str, Any] = {
        "model": request.model,
        "messages": [_told(message, calls) for message in request.messages],
    }
    if request.tools:
        asked["tools"] = msgspec.to_builtins(list(request.tools))
    if request.output_schema is not None:
        asked["output_schema"], asked["output_name"] = request.output_schema, request.output_name
    if options:
        asked["options"] = Redaction().value(options)
    scrubbed: dict[str, Any] = _each_text(asked, scrub)
    return scrubbed


def _told(message: ChatMessage, calls: dict[str, str]) -> dict[str, Any]:
    """Return what a provider is told of a message: not what its answer has cost, and bytes by their digest.

    Args:
        message: The message.
        calls: Ids of tool calls so far, and their numbers, which stand for them: an id may be another one in each run.
    """
    told: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes,))
    for name in ("usage", "finish_reason", "extra_args"):
        told.pop(name, None)
    for call in told.get("tool_calls", ()):
        name = call.pop("original_id", "") or call.get("id", "")
        call["id"] = calls.setdefault(name, f"call {len(calls) + 1}")
    if "external_id" in message.extra_args:
        answered = message.extra_args["external_id"]
        told["external_id"] = calls.get(answered, answered)
    for part in told.get("parts", ()):
        if "data" in part:
            digest = hashlib.blake2b(part["data"], digest_size=8).hexdigest()
            part["data"] = f"{len(part['data']):,} bytes, {digest}"
    return told


async def _replayed(recording: _Recording, request: ChatRequest, on_delta: OnDelta | None) -> ChatMessage:
    if on_delta is not None:
        for delta in recording.deltas:
            on_delta(msgspec.convert(delta, ChatDelta))
            await asyncio.sleep(0)
    if (failure := recording.failure) is not None:
        # nobody has to be waited for: what the provider wanted is over
        retry_after_s = None if failure.retry_after_s is None else 0.0
        raise _KINDS[failure.kind](failure.what, failure.provider, request.model, failure.status, retry_after_s)
    assert recording.answer is not None, "`_read` has looked at it"
    if on_delta is not None and not recording.deltas:
        await stream_answer(recording.answer, on_delta)
    return recording.answer


def _read(path: Path) -> _Recording:
    try:
        recording = msgspec.json.decode(path.read_bytes(), type=_Recording)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError([f"recording '{path}' of a chat model cannot be read: {error}"]) from None
    failure = recording.failure
    if recording.answer is None and (failure is None or failure.kind not in _KINDS):
        kinds = ", ".join(_KINDS)
        raise ConfigError([f"recording '{path}' of a chat model has neither an answer nor a failure of kind {kinds}"])
    return recording


def _without_defaults(delta: ChatDelta) -> dict[str, Any]:
    empty = ChatDelta("")
    plain: dict[str, Any] = msgspec.to_builtins(delta)
    return {name: value for name, value in plain.items() if name == "text" or value != getattr(empty, name)}


def _each_text(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401 (plain values)
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _each_text(one, change) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each_text(one, change) for one in value]
    return value


def _differences(recorded: Any, asked: Any, place: str = "") -> Iterator[str]:  # noqa: ANN401 (plain values)
    """Yield where two requests differ, a line for each place."""
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for name in dict.fromkeys((*recorded, *asked)):
            yield from _differences(recorded.get(name), asked.get(name), f"{place}.{name}" if place else name)
    elif isinstance(recorded, list) and isinstance(asked, list):
        for at in range(max(len(recorded), len(asked))):
            was, now = (values[at] if at < len(values) else None for values in (recorded, asked))
            yield from _differences(was, now, f"{place}[{at}]")
    elif recorded != asked:
        shown = _around_difference(_shown(recorded), _shown(asked))
        yield "{}: recorded {}, asked {}".format(place, *shown)


def _shown(value: Any) -> str:  # noqa: ANN401 (plain values)
    return "nothing" if value is None else msgspec.json.encode(value).decode()


def _around_difference(*texts: str) -> Iterator[str]:
    """Yield the part of each text in which they begin to differ."""
    same = next(
        (at for at, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), min(map(len, texts))
    )
    start = max(0, same - _SHOWN_BEFORE)
    for text in texts:
        shown = text[start : start + _SHOWN_MAX]
        yield f"{'…' if start else ''}{shown}{'…' if start + _SHOWN_MAX < len(text) else ''}"
