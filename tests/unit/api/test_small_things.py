"""Durations, sizes, and the forms in which an action may be added."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from agentflow import Agent, AgentPlan, Event, EventType
from agentflow.api.durations import duration_ms, size_bytes
from agentflow.runtime.settings import CheckpointSettings


class Scored(Event):
    EVENT_TYPE = "scored"


def act(event, ctx):
    pass


@pytest.mark.parametrize("trigger", ["scored", ["scored"], Scored, [Scored], ("scored",)])
def test_one_trigger_needs_no_list(trigger):
    agent = Agent("A").add_action("act", trigger, act).add_action("begin", EventType.InputEvent, act)
    plan = AgentPlan.from_agent(agent)
    assert plan.actions[0].trigger_types == ("scored",)


@pytest.mark.parametrize(
    ("text", "ms"), [("250ms", 250), ("1.5m", 90_000), ("30d", 2_592_000_000), (timedelta(seconds=2), 2_000)]
)
def test_durations_have_units(text, ms):
    assert duration_ms(text) == ms


@pytest.mark.parametrize("text", ["5", "s", "-1s", "1 week", "9" * 400 + "s", "1e3s", ""])
def test_what_is_no_duration_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"is not a duration|is too large"):
        duration_ms(text)


@pytest.mark.parametrize("text", ["5", "-1B", "9" * 400 + "GiB", "1 TiB"])
def test_what_is_no_size_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"is not a size|is too large"):
        size_bytes(text)


def test_settings_can_be_converted_from_plain_values():
    assert msgspec.convert({"interval_ms": 1}, CheckpointSettings).interval_ms == 1
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"interval_ms": 0}, CheckpointSettings)
