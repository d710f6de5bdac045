"""What a traceback shows of an error: the user's frames, whoever raised it, and none of the engine's."""

from __future__ import annotations

import asyncio
import traceback

import agentflow
from agentflow import Agent, AgentPlan
from agentflow.api.durations import duration_ms
from agentflow.api.encoding import user_traceback
from agentflow.errors import PlanError


def _raised(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:  # noqa: BLE001 (whatever it raises)
        return error
    raise AssertionError("it raised nothing")


def _frames(text):
    return [line.rpartition(", in ")[2] for line in text.splitlines() if line.lstrip().startswith("File ")]


def test_frames_of_the_engine_are_left_out_on_both_sides_of_the_users():
    def pause():
        duration_ms("soon")

    text = user_traceback(_raised(pause))
    assert _frames(text) == ["_raised", "pause"]
    assert text.splitlines()[-1].startswith("ValueError: 'soon' is not a duration")


def test_error_of_the_engine_shows_where_the_user_met_it_and_not_its_text_again():
    def compile_it():
        AgentPlan.from_agent(Agent("a"))

    error = _raised(compile_it)
    assert isinstance(error, PlanError)
    text = user_traceback(error)
    assert _frames(text) == ["_raised", "compile_it"]
    assert text.splitlines()[-1].strip() == 'AgentPlan.from_agent(Agent("a"))'


def test_errors_behind_an_error_are_shown_with_the_users_frames():
    def pause():
        try:
            duration_ms("soon")
        except ValueError as error:
            raise KeyError("pause") from error

    text = user_traceback(_raised(pause))
    assert _frames(text) == ["pause", "_raised", "pause"]
    assert "ValueError: 'soon' is not a duration" in text
    assert "direct cause" in text


def test_frames_of_asyncio_are_left_out():
    async def wait():
        await asyncio.wait_for(fail(), 1)

    async def fail():
        raise KeyError("x")

    assert _frames(user_traceback(_raised(asyncio.run, wait()))) == ["_raised", "wait", "fail"]


def test_error_without_a_frame_of_the_user_has_no_traceback():
    error = _raised(duration_ms, "soon")
    error.__traceback__ = error.__traceback__.tb_next
    assert traceback.extract_tb(error.__traceback__)[0].filename.startswith(agentflow.__path__[0])
    assert user_traceback(error) == ""


def test_deep_traceback_keeps_both_ends():
    def down(depth):
        return inner(depth) if depth else {}["x"]

    def inner(depth):
        return down(depth - 1)

    frames = _frames(user_traceback(_raised(down, 100)))
    assert len(frames) == 40
    assert frames[0] == "_raised"
    assert frames[-1] == "down"
