"""Scripts of models: what no model would say is refused where it is written."""

from __future__ import annotations

import pytest

from agentflow import ChatMessage, Engine, ReActAgent, RunFailed
from agentflow.api.chat_messages import tool_call
from agentflow.testing import ScriptedChatModel


def test_a_text_in_the_place_of_the_list_of_replies_is_refused():
    with pytest.raises(TypeError, match=r"give a list: \['hello'\]"):
        ScriptedChatModel("hello")


@pytest.mark.parametrize("reply", [5, None, [5], {"tol": "look"}, {"tool": "look", "arguments": [1]}, b"hi"])
def test_what_is_no_reply_is_refused_before_anybody_asks(reply):
    with pytest.raises(ValueError, match=r"replies: number 2: .* is no reply"):
        ScriptedChatModel(["hi", reply])
    with pytest.raises(ValueError, match=r"rules: number 1: .* is no reply"):
        ScriptedChatModel(rules=[{"when": "", "replies": ["hi", reply]}])


def test_every_kind_of_reply_is_taken():
    replies = ["hi", ChatMessage(content="hi"), {"content": "hi"}, {"tool": "look"}, tool_call("look", {"n": 1})]
    more = [[tool_call("look", {}), {"tool": "look", "arguments": {}}], ValueError("no"), lambda request: "hi"]
    ScriptedChatModel([*replies, *more], rules=[{"reply": "hi"}, {"when": "^a+$", "replies": replies}], latency="5ms")


async def test_a_script_is_complete_when_every_reply_was_asked_for_and_every_question_had_one():
    model = ScriptedChatModel(["hi"])
    async with Engine(ReActAgent(chat_model=model), in_memory=True) as engine:
        with pytest.raises(AssertionError, match="1 scripted replies were not asked for"):
            model.assert_complete()
        assert await engine.submit("k", "hello") == ["hi"]
        model.assert_complete()
        with pytest.raises(RunFailed, match="ModelRejected"):
            await engine.submit("k", "hello?")
    with pytest.raises(AssertionError, match=r"no reply to 1 questions; the first one: 'hello\?'"):
        model.assert_complete()
