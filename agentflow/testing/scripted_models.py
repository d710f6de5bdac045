"""Chat models for tests and for trying things: they say what a script says, and check that all of it was asked for.

model = ScriptedChatModel([tool_call("find_orders", {"customer": "c-1"}), "There are two orders."])
agent.add_resource("assistant", ResourceType.CHAT_MODEL, model)
...
model.assert_complete()
assert model.requests[0].messages[-1].content == "…"
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentflow.api.chat_messages import ChatMessage, MessageRole, Usage, arguments_text, read_message, tool_call
from agentflow.api.chat_models import (
    BaseChatModelConnection,
    BaseChatModelSetup,
    ChatDelta,
    ChatRequest,
    DeltaKind,
    OnDelta,
)
from agentflow.api.durations import duration_ms
from agentflow.errors import ConfigError, ModelRejected

_WORD = re.compile(r"\S+\s*")
_RULE = {"when", "reply", "replies"}


class ScriptedConnection(BaseChatModelConnection):
    """Answers by a script, in this order: ``replies``, each once, then the first of ``rules`` whose ``when`` is found.

    A reply is a text; a `ChatMessage`, or a dict of one; a tool call, or a list of them (`tool_call`, or ``{"tool": name,
    "arguments": {…}}``); an exception, which is raised; or a function of the `ChatRequest` that returns any of these.

    Attributes:
        replies: Replies, in the order of the calls.
        rules: Rules ``{"when": regular expression, "reply": reply}``: the last message decides, of the user or of a tool; a list as
            ``replies`` gives one for each turn of the model in a conversation. They depend on the conversation alone, so they answer
            in the same way in every process.
        script: File with both, JSON or YAML.
        latency: Time that a call takes.
    """

    provider = "scripted"
    can_stream = True

    replies: list[Any] = []
    rules: list[dict[str, Any]] = []
    script: str | None = None
    latency: str | float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.latency, str):
            duration_ms(self.latency)
        _check_script(self.replies, self.rules)

    async def open(self) -> None:
        """Read the script."""
        self._rest = list(self.replies)
        self._rules = list(self.rules)
        if self.script is not None:
            given = _read_script(self.script)
            try:
                _check_script(given.get("replies", []), given.get("rules", []))
            except ValueError as error:
                raise ConfigError([f"script '{self.script}' of a scripted model: {error}"]) from None
            self._rest += given.get("replies", [])
            self._rules += given.get("rules", [])

    @property
    def requests(self) -> list[ChatRequest]:
        """What was asked, in order."""
        asked: list[ChatRequest] = self.__dict__.setdefault("_asked", [])
        return asked

    def assert_complete(self) -> None:
        """Check that every reply was asked for, and every question had one.

        Raises:
            AssertionError: Some were not, or one had none.
        """
        unanswered = self.__dict__.get("_unanswered", [])
        assert not unanswered, (
            f"the script had no reply to {len(unanswered)} questions; the first one: {unanswered[0]!r}"
        )
        rest = self.__dict__.get("_rest", self.replies)
        assert not rest, f"{len(rest)} scripted replies were not asked for; the next one: {rest[0]!r}"

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Return the next reply.

        Raises:
            ModelRejected: The script has none.
        """
        await self
        self.requests.append(request)
        if self.latency:
            await asyncio.sleep(self.latency if isinstance(self.latency, float) else duration_ms(self.latency) / 1000)
        reply = self._next(request)
        if callable(reply) and not isinstance(reply, type):
            reply = reply(request)
            reply = await reply if inspect.isawaitable(reply) else reply
        if isinstance(reply, Exception):
            raise reply
        answer = _message(reply)
        if answer.usage is None:
            answer.usage = Usage(sum(_tokens(message.text) for message in request.messages), _tokens(answer.text) or 1)
        answer.finish_reason = answer.finish_reason or ("tool_calls" if answer.tool_calls else "stop")
        if on_delta is not None:
            await stream_answer(answer, on_delta)
        return answer

    def _next(self, request: ChatRequest) -> Any:  # noqa: ANN401 (a reply)
        if self._rest:
            return self._rest.pop(0)
        last = request.messages[-1].text if request.messages else ""
        for rule in self._rules:
            if re.search(rule.get("when", ""), last):
                if "replies" not in rule:
                    return rule["reply"]
                turn = sum(message.role == MessageRole.ASSISTANT for message in request.messages)
                return rule["replies"][min(turn, len(rule["replies"]) - 1)]
        self.__dict__.setdefault("_unanswered", []).append(last)
        raise ModelRejected(f"the script has no reply to {last[:80]!r}", self.provider, request.model)


class ScriptedChatModel(BaseChatModelSetup):
    """A chat model with a `ScriptedConnection` of its own. Its arguments are those of both; ``replies`` may come first."""

    def __init__(self, replies: Sequence[Any] = (), **arguments: Any) -> None:  # noqa: ANN401 (those of a setup)
        if isinstance(replies, str):
            raise TypeError(f"replies is the text {replies!r}; give a list: [{replies!r}]")
        scripted = {name: arguments.pop(name) for name in ("rules", "latency", "script") if name in arguments}
        BaseChatModelSetup.__init__(self, **{"model": "scripted", "connection": "scripted", **arguments})
        self._connection = ScriptedConnection(replies=list(replies), **scripted)

    def get_connection(self) -> ScriptedConnection:
        """Return the connection."""
        return self._connection

    @property
    def requests(self) -> list[ChatRequest]:
        """What was asked, in order."""
        return self._connection.requests

    def assert_complete(self) -> None:
        """Check that every reply was asked for.

        Raises:
            AssertionError: Some were not.
        """
        self._connection.assert_complete()

    def model_dump_json(self) -> str:
        """Return its name, for a stored plan: replies may be functions."""
        return msgspec.json.encode({"model": self.model}).decode()


def _check_script(replies: Any, rules: Any) -> None:  # noqa: ANN401 (unchecked)
    """Refuse what no model would say, before somebody is told it.

    Raises:
        ValueError: There is such a reply, or a rule.
    """
    for name, given in (("replies", replies), ("rules", rules)):
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"{name}: {given!r} is no list")  # noqa: TRY004 (of a file, mostly)
    for place, reply in enumerate(replies):
        _check_reply(reply, f"replies: number {place + 1}")
    for place, rule in enumerate(rules):
        what = f"rules: number {place + 1}"
        if not isinstance(rule, dict) or set(rule) - _RULE or len({"reply", "replies"} & set(rule)) != 1:
            raise ValueError(f"{what}: {rule!r} is no rule; it has 'when', and 'reply' or 'replies'")
        try:
            re.compile(rule.get("when", ""))
        except (re.error, TypeError) as error:
            raise ValueError(f"{what}: 'when' is no regular expression: {error}") from None
        for reply in rule["replies"] if "replies" in rule else [rule["reply"]]:
            _check_reply(reply, what)


def _check_reply(reply: Any, what: str) -> None:  # noqa: ANN401 (unchecked)
    if callable(reply) or isinstance(reply, Exception):
        return
    try:
        if not isinstance(reply, (str, ChatMessage, dict, list)):
            raise ValueError(f"it is a {type(reply).__name__}")  # noqa: TRY004 (as the others)
        if isinstance(reply, dict) and not {"tool", "function"} & reply.keys():
            unknown = sorted(reply.keys() - set(ChatMessage.__struct_fields__))
            if unknown:
                raise ValueError(f"there is no field {unknown[0]!r}")
        for call in _message(reply).tool_calls:
            if not isinstance(call["function"]["arguments"], (dict, str)):
                raise ValueError(f"arguments of tool '{call['function']['name']}' are no object")  # noqa: TRY004
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{what}: {reply!r} is no reply: {error}") from None


def _message(reply: Any) -> ChatMessage:  # noqa: ANN401 (a reply)
    if isinstance(reply, str):
        return ChatMessage(MessageRole.ASSISTANT, reply)
    if isinstance(reply, ChatMessage):
        return msgspec.structs.replace(reply, role=MessageRole.ASSISTANT)
    calls = reply if isinstance(reply, list) else [reply]
    if all(isinstance(call, dict) and ("function" in call or "tool" in call) for call in calls):
        return ChatMessage(MessageRole.ASSISTANT, tool_calls=[_tool_call(call, at) for at, call in enumerate(calls)])
    return read_message({"role": MessageRole.ASSISTANT, **reply})


def _tool_call(call: dict[str, Any], place: int) -> Any:  # noqa: ANN401 (a ToolCall)
    if "tool" in call:
        return tool_call(call["tool"], call.get("arguments", {}), call.get("id", f"scripted_{place}"))
    return call


def _tokens(text: str) -> int:
    return -(-len(text) // 4)


async def stream_answer(answer: ChatMessage, on_delta: OnDelta) -> None:
    """Hand out an answer in pieces: word by word, a tool call in one."""
    for part in answer.reasoning:
        on_delta(ChatDelta(part.text, DeltaKind.REASONING))
    for word in _WORD.findall(answer.content):
        on_delta(ChatDelta(word))
        await asyncio.sleep(0)
    for place, call in enumerate(answer.tool_calls):
        text = arguments_text(call["function"]["arguments"])
        on_delta(ChatDelta(text, DeltaKind.TOOL_CALL, place, call["function"]["name"]))


def _read_script(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        given = msgspec.json.decode(text) if path.endswith(".json") else msgspec.yaml.decode(text)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError([f"script '{path}' of a scripted model cannot be read: {error}"]) from None
    if isinstance(given, list):
        return {"replies": given}
    if not isinstance(given, dict) or set(given) - {"replies", "rules"}:
        raise ConfigError([f"script '{path}' of a scripted model: expected 'replies', 'rules', or a list of replies"])
    return given
