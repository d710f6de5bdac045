"""Conversations against plain lists: appended, compacted, read again, across checkpoints and restarts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentflow import Agent, EventType, Retry
from agentflow.api.chat_history import KeepLast, TokenBudget, estimated_tokens
from agentflow.api.chat_messages import ChatMessage, MessageRole, tool_call, tool_message
from agentflow.testing import OperatorHarness

SYSTEM, USER, ASSISTANT, TOOL = MessageRole


def calls(count):
    return [tool_call("look", {"n": n}, f"c{n}") for n in range(count)]


plain = st.builds(ChatMessage, st.sampled_from([SYSTEM, USER, ASSISTANT]), st.text("ab", min_size=1, max_size=30))
turns = st.integers(1, 3).map(
    lambda count: [
        ChatMessage(ASSISTANT, tool_calls=calls(count)),
        *(tool_message(call, f"result {n}") for n, call in enumerate(calls(count))),
    ]
)
cut_turns = st.tuples(turns, st.integers(1, 3)).map(lambda turn: turn[0][: turn[1]])
policies = st.builds(KeepLast, st.integers(1, 5)) | st.builds(TokenBudget, st.integers(1, 80))


def operations_on(batches):
    return st.lists(
        st.tuples(st.just("append"), batches)
        | st.tuples(st.just("compact"), policies)
        | st.tuples(st.sampled_from(["clear", "checkpoint", "restart"]), st.none()),
        max_size=12,
    )


def performed(operations):
    """Yield (operation, argument, messages before, messages after, writes, entries after) of each that is done."""
    done = []

    async def act(event, ctx):
        name, argument = operations[event.input["n"]]
        history = ctx.chat_history()
        before = history.messages()
        if name == "append":
            history.append(*argument)
        elif name == "compact":
            await history.compact(argument)
        elif name == "clear":
            history.clear()
        done.append((before, history.messages(), len(ctx._short_term.writes)))

    agent = Agent("A").add_action("act", EventType.InputEvent, act, retry=Retry(attempts=1))
    with OperatorHarness(agent, key_by="k") as harness:
        for n, (name, argument) in enumerate(operations):
            if name in ("checkpoint", "restart"):
                harness.checkpoint()
                if name == "restart":
                    harness.restart()
            harness.process_record({"k": 1, "n": n})
            assert harness.dead_letters == []
            yield (name, argument, *done[-1], len(harness.memory(1)))


def is_one_that_providers_take(messages):
    open_calls = []
    for message in messages:
        if message.role == TOOL:
            open_calls.remove(message.extra_args["external_id"])
        else:
            if open_calls:
                return False
            open_calls = [call["original_id"] for call in message.tool_calls]
    return not open_calls


def leading_systems(messages):
    return next((n for n, message in enumerate(messages) if message.role != SYSTEM), len(messages))


@given(operations_on(st.lists(plain, max_size=4) | turns))
def test_a_history_is_a_list_whose_entries_are_bounded(operations):
    expected = []
    for name, argument, before, after, writes, entries in performed(operations):
        assert before == expected
        if name == "append":
            expected = [*expected, *argument]
            assert writes <= 2
        elif name == "clear":
            expected = []
        elif name == "compact":
            expected = compacted(expected, argument)
        assert after == expected
        assert entries <= len(expected) + 2


def compacted(messages, policy):
    """What a policy leaves of a conversation whose calls are all answered, looked for from the longest to the shortest."""
    start = leading_systems(messages)
    candidates = []
    for cut in range(start, len(messages)):
        if messages[cut].role == TOOL:
            continue
        kept = messages[cut:]
        questions = [message for message in messages[start:cut] if message.role == USER]
        if kept[0].role != USER and questions:
            kept = [questions[-1], *kept]
        candidates.append((len(messages) - cut, [*messages[:start], *kept]))
    if not candidates:
        return messages
    if isinstance(policy, KeepLast):
        return next((kept for n, kept in reversed(candidates) if n >= policy.messages), messages)
    fitting = (kept for _, kept in candidates if sum(map(estimated_tokens, kept)) <= policy.tokens)
    return next(fitting, candidates[-1][1])


@given(operations_on(st.lists(plain, max_size=3) | cut_turns | turns.map(lambda turn: turn[1:])))
def test_whatever_is_cut_off_providers_take_what_is_there(operations):
    for name, argument, before, after, _, _ in performed(operations):
        assert is_one_that_providers_take(after)
        if name == "compact":
            start = leading_systems(before)
            assert after[:start] == before[:start]
            rest = iter(before)
            assert all(message in rest for message in after)  # in their order, none that was not there
            users = [message for message in after if message.role == USER]
            assert users[-1:] == [message for message in before if message.role == USER][-1:]
            if isinstance(argument, KeepLast):
                assert len(after) >= min(len(before), argument.messages) or any(m.role == TOOL for m in before)
