"""Recordings of chat models: what is a request, what files hold, what a call gets that is not recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentflow.api.chat_messages import ChatMessage, ImagePart, ReasoningPart, Usage, tool_call
from agentflow.api.chat_models import BaseChatModelConnection, ChatDelta, ChatRequest, DeltaKind
from agentflow.api.resources import ResourceType
from agentflow.api.tools import ToolMetadata
from agentflow.errors import ConfigError, ContextTooLong, ModelRejected, ModelUnavailable, NotConfigured, RateLimited
from agentflow.testing import RecordedChatModel, RecordedConnection, ScriptedConnection


class Around:
    """The other resources of an agent, and its secrets."""

    def __init__(self, connection: BaseChatModelConnection, *secrets: str) -> None:
        self.connection = connection
        self.secrets = secrets

    def get_resource(self, name: str, type: ResourceType) -> Any:  # noqa: A002
        assert (name, type) == ("real", ResourceType.CHAT_MODEL_CONNECTION)
        return self.connection

    async def opened(self, resource: Any) -> Any:
        await resource.open()
        return resource

    def scrub(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


class Native(ScriptedConnection):
    """A provider that makes its models answer by a schema."""

    def supports_native_structured_output(self, model: str) -> bool:
        return model == "m"


def recorder(directory: Path, *replies: Any, mode: Any = "record", secrets: tuple[str, ...] = ()) -> RecordedConnection:
    made = RecordedConnection(directory=str(directory), mode=mode, connection="real")
    made.__dict__["context"] = Around(Native(replies=list(replies)), *secrets)
    return made


def player(directory: Path) -> RecordedConnection:
    return RecordedConnection(directory=str(directory))


def request(text: str = "hi", **fields: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=[ChatMessage(content=text)], **fields)


def files(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


ANSWER = ChatMessage(
    "assistant",
    "two orders",
    tool_calls=[tool_call("find", {"customer": "c-1"}, "call_1")],
    reasoning=[ReasoningPart("they ask for orders", {"signature": "s"})],
    usage=Usage(7, 5, reasoning_tokens=2),
    finish_reason="tool_calls",
    extra_args={"model_name": "m-2025"},
)


async def test_a_replay_answers_as_the_provider_did(tmp_path: Path) -> None:
    recorded = await recorder(tmp_path, ANSWER).complete(request())
    assert await player(tmp_path).complete(request()) == recorded == ANSWER


@pytest.mark.parametrize(
    "error",
    [
        ModelUnavailable("it is down", "p", "m", 503),
        ModelRejected("no such model", "p", "m", 404),
        ContextTooLong("too long", "p", "m", 400),
    ],
)
async def test_a_replay_fails_as_the_provider_did(tmp_path: Path, error: Any) -> None:
    for connection in (recorder(tmp_path, error), player(tmp_path)):
        with pytest.raises(type(error)) as caught:
            await connection.complete(request())
        assert (caught.type, caught.value.args) == (type(error), error.args)


async def test_a_replay_does_not_wait_for_a_limit_of_the_provider(tmp_path: Path) -> None:
    with pytest.raises(RateLimited):
        await recorder(tmp_path, RateLimited("slow down", "p", "m", 429, 30.0)).complete(request())
    assert files(tmp_path)[0]["failure"]["retry_after_s"] == 30.0
    with pytest.raises(RateLimited) as caught:
        await player(tmp_path).complete(request())
    assert caught.value.retry_after_s == 0.0


async def test_equal_requests_are_answered_in_the_order_in_which_they_were_recorded(tmp_path: Path) -> None:
    real = recorder(tmp_path, "one", ModelUnavailable("down"), "two", "other")
    assert (await real.complete(request())).content == "one"
    with pytest.raises(ModelUnavailable):
        await real.complete(request())
    assert (await real.complete(request())).content == "two"
    assert (await real.complete(request("bye"))).content == "other"
    replay = player(tmp_path)
    assert (await replay.complete(request("bye"))).content == "other"
    assert (await replay.complete(request())).content == "one"
    with pytest.raises(ModelUnavailable):
        await replay.complete(request())
    assert (await replay.complete(request())).content == "two"
    with pytest.raises(ModelRejected, match=r"made 4 times, and recorded 3 times"):
        await replay.complete(request())


async def test_a_request_is_what_the_model_is_told_and_nothing_else(tmp_path: Path) -> None:
    asked = ChatRequest(
        model="m",
        messages=[ANSWER, ChatMessage("tool", "[]", extra_args={"external_id": "call_1"})],
        options={"max_tokens": 5, "extra_headers": {"X-Trace": "1"}},
        idempotency_key="k-1",
    )
    await recorder(tmp_path, "yes").complete(asked)
    again = ChatRequest(
        model="m",
        messages=[
            ChatMessage(
                "assistant",
                ANSWER.content,
                tool_calls=ANSWER.tool_calls,
                reasoning=ANSWER.reasoning,
                usage=Usage(1, 1),
                extra_args={"cost": 2.0},
            ),
            asked.messages[1],
        ],
        options={"extra_headers": {"X-Trace": "2"}, "max_tokens": 5},
        idempotency_key="k-2",
    )
    assert (await player(tmp_path).complete(again)).content == "yes"
    assert "k-1" not in json.dumps(files(tmp_path))


async def test_ids_of_tool_calls_are_another_in_each_run_and_do_not_count(tmp_path: Path) -> None:
    def asked(run: str, answers: str) -> ChatRequest:
        calls: Any = [{**tool_call("find", {"n": n}), "id": f"{run}_{n}", "original_id": f"{run}_{n}"} for n in "ab"]
        said = [ChatMessage("tool", n, extra_args={"external_id": f"{run}_{n}"}) for n in answers]
        return ChatRequest(model="m", messages=[ChatMessage("assistant", tool_calls=calls), *said])

    await recorder(tmp_path, "yes").complete(asked("r1", "ab"))
    assert (await player(tmp_path).complete(asked("r2", "ab"))).content == "yes"
    with pytest.raises(ModelRejected, match="not recorded"):
        await player(tmp_path).complete(asked("r2", "ba"))


@pytest.mark.parametrize(
    "other",
    [
        request("bye"),
        request(tools=[ToolMetadata("find")]),
        request(output_schema={"type": "object"}),
        request(options={"temperature": 1}),
        ChatRequest(model="n", messages=request().messages),
    ],
)
async def test_another_request_is_not_answered_by_it(tmp_path: Path, other: ChatRequest) -> None:
    await recorder(tmp_path, "yes").complete(request())
    with pytest.raises(ModelRejected, match="not recorded"):
        await player(tmp_path).complete(other)


async def test_what_is_not_recorded_is_shown_beside_the_nearest_recording(tmp_path: Path) -> None:
    real = recorder(tmp_path, "a", "b", "c")
    for text in ("Order A-17 of ann, where is it?", "Say hello", "Order B-4 of bob, where is it?"):
        await real.complete(request(text, options={"temperature": 0.5}))
    with pytest.raises(ModelRejected) as caught:
        await player(tmp_path).complete(request("Order A-18 of ann, where is it?", options={"temperature": 0.5}))
    assert caught.value.what.splitlines()[1:] == [
        '  messages[0].content: recorded "Order A-17 of ann, where is it?", asked "Order A-18 of ann, where is it?"'
    ]


async def test_differences_are_shown_where_they_begin_and_not_all_of_them(tmp_path: Path) -> None:
    await recorder(tmp_path, "a").complete(request("x" * 500 + "old" + "y" * 500, options={"o0": 9}))
    options = {f"o{number}": number for number in range(9)}
    with pytest.raises(ModelRejected) as caught:
        await player(tmp_path).complete(request("x" * 500 + "new" + "y" * 500, options=options))
    lines = caught.value.what.splitlines()
    assert len(lines) == 6
    assert lines[-1] == "  and 6 more"
    assert f"recorded …{'x' * 20}old" in lines[1]
    assert f"asked …{'x' * 20}new" in lines[1]


async def test_an_empty_directory_says_how_to_record(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="mode='record'"):
        await player(tmp_path / "none").complete(request())


async def test_auto_asks_only_for_what_is_not_recorded(tmp_path: Path) -> None:
    await recorder(tmp_path, "one").complete(request())
    auto = recorder(tmp_path, "two", "three", mode="auto")
    texts = [(await auto.complete(request(text))).content for text in ("hi", "hi", "bye")]
    assert texts == ["one", "two", "three"]
    replay = player(tmp_path)
    assert [(await replay.complete(request(text))).content for text in ("hi", "bye", "hi")] == ["one", "three", "two"]


async def test_recording_again_replaces_all_of_a_request_and_nothing_of_others(tmp_path: Path) -> None:
    first = recorder(tmp_path, "one", "two", "other")
    for text in ("hi", "hi", "bye"):
        await first.complete(request(text))
    await recorder(tmp_path, "new").complete(request())
    assert sorted(one["answer"]["content"] for one in files(tmp_path)) == ["new", "other"]


async def test_the_same_calls_give_the_same_files(tmp_path: Path) -> None:
    for directory in (tmp_path / "a", tmp_path / "b"):
        await recorder(directory, ANSWER).complete(request(options={"b": 1, "a": 2}))
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / one).iterdir()} for one in "ab")
    assert first == second
    (text,) = first.values()
    assert text.startswith(b'{\n  "request": {\n')


async def test_pieces_are_replayed_as_they_came(tmp_path: Path) -> None:
    def pieces() -> tuple[list[ChatDelta], Any]:
        found: list[ChatDelta] = []
        return found, found.append

    came, take = pieces()
    await recorder(tmp_path, ANSWER).complete(request(), take)
    again, take = pieces()
    await player(tmp_path).complete(request(), take)
    assert again == came
    assert [delta.kind for delta in came] == [DeltaKind.REASONING, DeltaKind.TEXT, DeltaKind.TEXT, DeltaKind.TOOL_CALL]


async def test_an_answer_that_was_not_streamed_can_be(tmp_path: Path) -> None:
    await recorder(tmp_path, "a b").complete(request())
    found: list[ChatDelta] = []
    assert (await player(tmp_path).complete(request(), found.append)).content == "a b"
    assert "".join(delta.text for delta in found) == "a b"


async def test_secrets_are_in_no_file_and_no_part_of_what_a_request_is(tmp_path: Path) -> None:
    def asked(secret: str) -> ChatRequest:
        return request(f"use {secret}", options={"extra_body": {"api_key": secret, "note": f"with {secret}"}})

    await recorder(tmp_path, 'you said "s3cret"', secrets=("s3cret",)).complete(asked("s3cret"))
    assert "s3cret" not in json.dumps(files(tmp_path))
    elsewhere = recorder(tmp_path, mode="replay", secrets=("0ther",))
    assert (await elsewhere.complete(asked("0ther"))).content == 'you said "***"'


async def test_bytes_are_told_apart_and_not_written(tmp_path: Path) -> None:
    def asked(data: bytes) -> ChatRequest:
        return ChatRequest(model="m", messages=[ChatMessage(parts=[ImagePart(data=data)])])

    await recorder(tmp_path, "a cat").complete(asked(b"cat" * 1000))
    assert (await player(tmp_path).complete(asked(b"cat" * 1000))).content == "a cat"
    with pytest.raises(ModelRejected, match="3,000 bytes"):
        await player(tmp_path).complete(asked(b"dog" * 1000))
    assert len(json.dumps(files(tmp_path))) < 1000


async def test_a_replay_asks_for_output_as_the_recorded_provider_wanted_it(tmp_path: Path) -> None:
    real = recorder(tmp_path, "{}")
    assert (real.supports_native_structured_output("m"), real.supports_native_structured_output("n")) == (True, False)
    await real.complete(request())
    replay = player(tmp_path)
    assert (replay.supports_native_structured_output("m"), replay.supports_native_structured_output("n")) == (
        True,
        False,
    )


async def test_a_chat_model_of_its_own_replays(tmp_path: Path) -> None:
    model = RecordedChatModel(str(tmp_path), mode="record", connection="real", model="m")
    model.__dict__["context"] = Around(ScriptedConnection(replies=["yes"]))
    assert (await model.chat([ChatMessage(content="hi")])).content == "yes"
    replay = RecordedChatModel(str(tmp_path), model="m")
    assert (await replay.chat([ChatMessage(content="hi")])).content == "yes"


async def test_who_is_to_record_needs_somebody_to_ask(tmp_path: Path) -> None:
    for mode in ("record", "auto"):
        with pytest.raises(ConfigError, match="needs connection="):
            await RecordedConnection(directory=str(tmp_path), mode=mode)
    wrong: Any = "relay"
    with pytest.raises(ConfigError, match="none of replay, record, auto"):
        await RecordedConnection(mode=wrong)
    with pytest.raises(NotConfigured):
        await RecordedConnection(directory=str(tmp_path), mode="auto", connection="real").complete(request())


@pytest.mark.parametrize("text", ["{", '{"request": {}, "has_native_output": false}', "[]"])
async def test_a_recording_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    await recorder(tmp_path, "yes").complete(request())
    path = only_file(tmp_path)
    path.write_text(text)
    with pytest.raises(ConfigError, match=path.name):
        await player(tmp_path).complete(request())
