"""Conversations in short-term memory: what is written, what models are given, what compaction leaves."""

from __future__ import annotations

import inspect

import pytest

from agentflow import Agent, EventType, JobSettings, Retry, StateSettings
from agentflow.api.chat_history import CANCELLED, ChatHistory, KeepLast, Summarise, TokenBudget, estimated_tokens
from agentflow.api.chat_messages import ChatMessage, ImagePart, MessageRole, TextPart, Usage, tool_call, tool_message
from agentflow.testing import OperatorHarness


def said(*texts):
    """Messages by their first letter: system, user, assistant; c is an assistant's with calls, such as ``c:1,2``; t answers one: ``t:1``."""
    return [message_of(text) for text in texts]


def message_of(text):
    letter, _, rest = text.partition(":")
    if letter == "c":
        calls = [{**tool_call("look", {"n": n}, f"call-{n}"), "id": f"run-{n}"} for n in rest.split(",")]
        return ChatMessage(MessageRole.ASSISTANT, tool_calls=calls)
    if letter == "t":
        return ChatMessage(MessageRole.TOOL, f"result {rest}", extra_args={"external_id": f"call-{rest}"})
    role = {"s": MessageRole.SYSTEM, "u": MessageRole.USER, "a": MessageRole.ASSISTANT}[letter[0]]
    return ChatMessage(role, text)


def told(messages):
    """The inverse of `said`; a cancelled answer is ``x:1``."""
    lines = []
    for message in messages:
        number = str(message.extra_args.get("external_id", "")).removeprefix("call-")
        if message.role == MessageRole.TOOL:
            lines.append(f"x:{number}" if message.content == CANCELLED else f"t:{number}")
        elif message.tool_calls:
            lines.append("c:" + ",".join(call["original_id"].removeprefix("call-") for call in message.tool_calls))
        else:
            lines.append(message.text)
    return lines


class Runs:
    """Runs of one key, each of which does something with a history."""

    def __init__(self, **settings):
        self._steps = []
        self._found = None

        async def act(event, ctx):
            found = self._steps[event.input["n"]](ctx)
            self._found = await found if inspect.isawaitable(found) else found

        agent = Agent("A").add_action("act", EventType.InputEvent, act, retry=Retry(attempts=1))
        self.harness = OperatorHarness(agent, key_by="k", settings=JobSettings(**settings))

    def do(self, step):
        self._steps.append(step)
        self.harness.process_record({"k": 1, "n": len(self._steps) - 1})
        assert self.harness.dead_letters == []
        return self._found

    def append(self, *messages):
        self.do(lambda ctx: ctx.chat_history().append(*messages))

    def compact(self, policy):
        return self.do(lambda ctx: ctx.chat_history().compact(policy))

    def told(self):
        return self.do(lambda ctx: told(ctx.chat_history().messages()))

    @property
    def entries(self):
        return {path.rpartition(".")[2]: value for path, value in self.harness.memory(1).items()}

    def written_by(self, step):
        before = self.entries
        self.do(step)
        after = self.entries
        return {name for name in before | after if before.get(name) != after.get(name)}


@pytest.fixture
def runs():
    runs = Runs()
    yield runs
    runs.harness.close()


class Model:
    """Answers every question for a summary; stands where `ctx` does."""

    def __init__(self, ctx, answer="the gist", meanwhile=None):
        self.short_term_memory, self.logger = ctx.short_term_memory, ctx.logger
        self.asked = []
        self._answer, self._meanwhile = answer, meanwhile

    async def chat(self, model, messages):
        self.asked.append((model, messages))
        if self._meanwhile is not None:
            self._meanwhile(ChatHistory(self))
        return ChatMessage(MessageRole.ASSISTANT, self._answer)


def summarise(runs, policy, **model):
    models = []

    def step(ctx):
        models.append(Model(ctx, **model))
        return ChatHistory(models[0]).compact(policy)

    return runs.do(step), models[0].asked


# -- what is kept
def test_a_conversation_goes_on_in_the_next_run(runs):
    runs.append(ChatMessage(MessageRole.SYSTEM, "s"), "u1")
    runs.append(*said("a1"))
    assert runs.told() == ["s", "u1", "a1"]
    assert runs.do(lambda ctx: len(ctx.chat_history())) == 3
    runs.harness.checkpoint()
    runs.harness.restart()
    assert runs.told() == ["s", "u1", "a1"]


def test_everything_of_a_message_is_kept(runs):
    message = ChatMessage(
        MessageRole.ASSISTANT,
        parts=[TextPart("look", cache=True), ImagePart(data=b"\x00\xff")],
        tool_calls=[tool_call("f", {"a": [1, None]}, "c1")],
        extra_args={"structured_output": {"x": 1.5}},
        usage=Usage(3, 4),
        finish_reason="tool_calls",
    )
    runs.append(message, tool_message(message.tool_calls[0], "done"))
    assert runs.do(lambda ctx: ctx.chat_history().messages()[0]) == message


def test_an_append_writes_its_messages_and_the_index_only(runs):
    for n in range(20):
        assert runs.written_by(lambda ctx, n=n: ctx.chat_history().append(f"u{n}", *said(f"a{n}"))) == {"index", str(n)}
    assert runs.written_by(lambda ctx: ctx.chat_history().append()) == set()
    assert runs.written_by(lambda ctx: ctx.chat_history().messages()) == set()


def test_a_run_sees_what_it_has_appended_itself(runs):
    def step(ctx):
        history = ctx.chat_history()
        history.append("u1")
        history.append("u2")
        return told(ctx.chat_history().messages())

    assert runs.do(step) == ["u1", "u2"]


def test_histories_have_names_and_do_not_meet(runs):
    def step(ctx):
        for name in ("default", "ann@example.com", "ann@example", "a%2Eb", "a.b"):
            ctx.chat_history(name).append(f"u {name}")
        ctx.chat_history("a.b").clear()
        return [told(ctx.chat_history(name).messages()) for name in ("ann@example.com", "ann@example", "a%2Eb", "a.b")]

    assert runs.do(step) == [["u ann@example.com"], ["u ann@example"], ["u a%2Eb"], []]


def test_a_cleared_history_leaves_nothing_and_begins_anew(runs):
    runs.append(*said("s", "u1", "a1", "u2"))
    runs.compact(KeepLast(1))
    runs.do(lambda ctx: ctx.chat_history().clear())
    assert runs.entries == {}
    runs.append("u3")
    assert runs.told() == ["u3"]


def test_a_history_is_the_readers_copy(runs):
    runs.append("u1")
    runs.do(lambda ctx: ctx.chat_history().messages().clear())
    assert runs.told() == ["u1"]


def test_what_is_no_message_is_refused_with_the_fix(runs):
    def step(ctx):
        with pytest.raises(TypeError, match=r"write append\(\*messages\)"):
            ctx.chat_history().append(said("u1"))
        with pytest.raises(ValueError, match="half a character"):
            ctx.chat_history().append("cut \ud83d")
        with pytest.raises(ValueError, match="has a name"):
            ctx.chat_history("")
        return len(ctx.chat_history())

    assert runs.do(step) == 0


def test_messages_of_a_job_with_a_ttl_expire_one_by_one():
    runs = Runs(state=StateSettings(ttl_ms=10_000))
    for n in range(4):
        runs.append(*said(f"c:{n}") if n % 2 == 0 else said(f"t:{n - 1}", f"a{n}"))
        runs.harness.advance_time("4s")
    assert runs.told() == ["c:2", "t:2", "a3"]
    runs.append("u4")
    assert runs.entries["index"] == [2, 5]
    assert runs.told() == ["c:2", "t:2", "a3", "u4"]
    runs.harness.close()


# -- what models are given
@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ("u c:1 t:1 a", "u c:1 t:1 a"),
        ("u c:1,2", "u c:1,2 x:1 x:2"),
        ("u c:1,2 t:2", "u c:1,2 t:2 x:1"),
        ("u c:1 u2 a", "u c:1 x:1 u2 a"),
        ("u c:1 u2 t:1 a", "u c:1 t:1 u2 a"),  # the answer came when the next question was there already
        ("u c:1 t:1 c:1 t:1", "u c:1 t:1 c:1 t:1"),  # the same id in another turn is another call
        ("u c:1 a t:1", "u c:1 x:1 a"),
        ("t:1 u t:2", "u"),
        ("u c:1 t:1 t:1", "u c:1 t:1"),
    ],
)
def test_each_call_has_one_answer_right_behind_it(runs, stored, given):
    runs.append(*said(*stored.split()))
    assert runs.told() == given.split()


def test_an_answer_that_comes_later_counts(runs):
    runs.append(*said("u", "c:1"))
    assert runs.told() == ["u", "c:1", "x:1"]
    runs.append(*said("t:1"))
    assert runs.told() == ["u", "c:1", "t:1"]


def test_an_answer_may_name_the_calls_own_id_or_none(runs):
    call = said("c:7")[0]
    for extra in ({"external_id": "run-7"}, {}):
        runs.append(call, ChatMessage(MessageRole.TOOL, "found", extra_args=extra))
    assert [message.text for message in runs.do(lambda ctx: ctx.chat_history().messages())] == ["", "found"] * 2


def test_a_call_that_was_never_recorded_is_closed_too(runs):
    runs.append(ChatMessage(MessageRole.ASSISTANT, tool_calls=[tool_call("f", {})]))
    assert runs.do(lambda ctx: ctx.chat_history().messages()[1].content) == CANCELLED


# -- compaction
@pytest.mark.parametrize(
    ("stored", "last", "kept"),
    [
        ("u1 a1 u2 a2", 2, "u2 a2"),
        ("u1 a1 u2 a2", 9, "u1 a1 u2 a2"),
        ("s1 s2 u1 a1 u2 a2", 2, "s1 s2 u2 a2"),
        ("u1 s1 u2", 1, "u2"),  # a system message in the middle is as any other
        ("u1 a1 u2 a2", 3, "u1 a1 u2 a2"),  # what the first one answers stays
        ("u1 a1 u2 a2 a3 a4", 1, "u2 a4"),
        ("u1 a1 u2 c:1,2 t:1 t:2", 1, "u2 c:1,2 t:1 t:2"),
        ("u1 c:1 t:1 c:2 t:2 c:3 t:3", 2, "u1 c:3 t:3"),
        ("u1 c:1 t:1 c:2 t:2 c:3 t:3", 3, "u1 c:2 t:2 c:3 t:3"),
        ("u1 c:1 u2 t:1 u3", 2, "u1 c:1 t:1 u2 u3"),
        ("a1 a2 a3", 1, "a3"),
        ("t:1 s1 s2 u1 a1 u2", 1, "s1 s2 u2"),
        ("t:1 s1 s2", 1, "s1 s2"),
        ("t:1 t:2 t:3", 1, ""),  # answers without a call are nothing
        ("s1", 1, "s1"),
    ],
)
def test_keep_last_keeps_turns_whole(runs, stored, last, kept):
    for message in said(*stored.split()):
        runs.append(message)
    before = runs.told()
    assert runs.compact(KeepLast(last)) == len(before) - len(kept.split())
    assert runs.told() == kept.split()
    assert runs.compact(KeepLast(last)) == 0
    assert len(runs.entries) <= len(kept.split()) + 2


def test_a_call_that_is_being_made_keeps_its_place(runs):
    runs.append(*said("u1", "a1", "u2", "c:1,2", "t:1"))
    runs.compact(KeepLast(1))
    runs.append(*said("t:2", "a2"))
    assert runs.told() == ["u2", "c:1,2", "t:1", "t:2", "a2"]


def test_compaction_writes_what_changes_and_removes_what_nobody_needs(runs):
    for n in range(10):
        runs.append(*said(f"u{n}", f"a{n}"))
    written = runs.written_by(lambda ctx: ctx.chat_history().compact(KeepLast(3)))
    assert written == {*map(str, range(8)), "8", "index", "head"}
    assert set(runs.entries) == {"8", "9", "index", "head"}
    assert runs.written_by(lambda ctx: ctx.chat_history().compact(KeepLast(3))) == set()
    runs.append(*said("u10", "a10"))
    assert runs.told() == ["u8", "a8", "u9", "a9", "u10", "a10"]
    runs.compact(KeepLast(2))
    assert set(runs.entries) == {"10", "index"}


def test_a_token_budget_keeps_what_fits_and_at_least_the_last_turn(runs):
    texts = [f"{letter}{'x' * 39}" for letter in "uauaua"]  # 14 tokens each
    runs.append(ChatMessage(MessageRole.SYSTEM, "s" * 40), *said(*texts))
    assert runs.compact(TokenBudget(7 * 14)) == 0
    assert runs.compact(TokenBudget(7 * 14 - 1)) == 2  # the answer alone would leave the question there
    assert runs.compact(TokenBudget(1)) == 2
    assert runs.told() == ["s" * 40, *texts[-2:]]


def test_a_token_budget_counts_the_question_that_stays(runs):
    runs.append("u" * 400, *said("c:1", "t:1", "c:2", "t:2"))
    turn = sum(map(estimated_tokens, said("c:2", "t:2")))
    assert runs.compact(TokenBudget(104 + turn)) == 2
    assert runs.told() == ["u" * 400, "c:2", "t:2"]


def test_tokens_are_estimated_from_what_is_known():
    assert estimated_tokens(ChatMessage(content="12345")) == 2 + 4
    assert estimated_tokens(ChatMessage(content="12345", usage=Usage(900, 50))) == 50 + 4
    assert estimated_tokens(ChatMessage(parts=[TextPart("1234"), ImagePart(url="x")])) == 1 + 1000 + 4
    assert estimated_tokens(ChatMessage(MessageRole.ASSISTANT, tool_calls=[tool_call("f", {"a": 1})])) == 2 + 4


def test_a_summary_takes_the_place_of_old_messages(runs):
    runs.append(*said("s1", "u1", "c:1", "t:1", "a1", "u2", "a2"))
    gone, asked = summarise(runs, Summarise("small", above=10, keep_last=2))
    assert gone == 3
    assert runs.told() == ["s1", "Summary of the conversation so far:\nthe gist", "u2", "a2"]
    [(model, (instruction, conversation))] = asked
    assert (model, instruction.role) == ("small", MessageRole.SYSTEM)
    assert 'assistant: [calls look{"n":"1"}]\ntool: result 1\nassistant: a1' in conversation.content
    assert "u2" not in conversation.content


def test_a_short_conversation_is_not_summarised(runs):
    runs.append(*said("u1", "a1", "u2"))
    assert summarise(runs, Summarise("small", above=1000, keep_last=1)) == (0, [])


def test_a_summary_alone_is_not_summarised_again(runs):
    runs.append(*said("u1", "a1", "u2", "a2"))
    policy = Summarise("small", above=1, keep_last=2, prompt="Be brief.")
    _, asked = summarise(runs, policy)
    assert asked[0][1][0].content == "Be brief."
    assert summarise(runs, policy) == (0, [])
    runs.append(*said("u3", "a3"))
    gone, asked = summarise(runs, policy)
    assert gone == 2
    assert "the gist" in asked[0][1][1].content
    assert len(runs.entries) == 3


def test_an_empty_summary_leaves_the_conversation_as_it_is(runs):
    runs.append(*said("u1", "a1", "u2"))
    gone, asked = summarise(runs, Summarise("small", above=1, keep_last=1), answer=" ")
    assert (gone, len(asked)) == (0, 1)
    assert runs.told() == ["u1", "a1", "u2"]


@pytest.mark.parametrize(
    ("meanwhile", "left"),
    [
        (lambda history: history.append("u3"), ["Summary of the conversation so far:\nthe gist", "u2", "u3"]),
        (lambda history: history.clear(), []),
    ],
)
def test_what_is_said_while_a_summary_is_written_stays(runs, meanwhile, left):
    runs.append(*said("u1", "a1", "u2"))
    summarise(runs, Summarise("small", above=1, keep_last=1), meanwhile=meanwhile)
    assert runs.told() == left


def test_policies_are_plain_fields_too(runs):
    runs.append(*said("u1", "a1", "u2", "a2", "u3", "a3"))
    assert runs.compact({"type": "keep-last", "messages": 4}) == 2
    assert runs.compact({"type": "token-budget", "tokens": 11}) == 2
    fields = {"type": "summarise", "model": "m", "above": 9, "keep-last": 1}
    assert summarise(runs, fields)[0] == 0


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"messages": 4}, "missing required field `type`"),
        ({"type": "keep-last", "messages": 4, "tokens": 1}, "unknown field `tokens`"),
        ({"type": "keep-last", "messages": 0}, "messages is 0; it is at least 1"),
        ({"type": "forget"}, "Invalid value 'forget'"),
        ("keep-last", "got `str`"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_reason(runs, fields, why):
    async def step(ctx):
        with pytest.raises(ValueError, match=why):
            await ctx.chat_history().compact(fields)

    runs.do(step)
    with pytest.raises(ValueError, match="at least 1"):
        KeepLast(0)
