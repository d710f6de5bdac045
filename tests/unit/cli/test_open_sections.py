"""Keys with free names: `event-log.type.<TYPE>.level`, in files, profiles, variables and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.cli.config_file import load_job_file
from tests.unit.cli.job_files import GOOD, problems, told


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def levels(text, *settings, profile=None, **variables):
    """Return the levels by type that a job file sets."""
    Path("job.yaml").write_text(GOOD + text, encoding="utf-8")
    job_file = load_job_file("job.yaml", settings=settings, profile=profile, variables=variables)
    return {name: one.level for name, one in job_file.settings.event_log.type.items()}


@pytest.mark.parametrize(
    "text",
    [
        "event-log.type.shop.order.level: verbose\nevent-log.type.shop.level: off\n",
        'event-log: {type: {shop: {order: {level: verbose}, level: "off"}}}\n',
        "event-log: {type: {shop.order: {level: verbose}, shop.level: off}}\n",
        "event-log: {type.shop.order.level: verbose}\nevent-log.type: {shop: {level: off}}\n",
    ],
)
def test_names_with_dots_are_the_same_in_every_form(text):
    assert levels(text) == {"shop.order": "verbose", "shop": "off"}


def test_layers_win_key_by_key():
    text = "event-log.type: {a.level: off, b.level: off}\nprofile: {prod: {event-log.type.b.level: verbose}}\n"
    assert levels(text) == {"a": "off", "b": "off"}
    assert levels(text, profile="prod") == {"a": "off", "b": "verbose"}
    assert levels(text, "event-log.type.c.level=standard", profile="prod")["c"] == "standard"
    assert levels(text, AGENTFLOW_EVENT_LOG_TYPE_B_LEVEL="standard") == {"a": "off", "b": "standard"}


def test_null_takes_all_names_back():
    assert levels("event-log.type.a.level: off\n", "event-log.type=null") == {}
    assert levels("event-log.type.a.level: null\n") == {"a": None}


def test_variable_of_a_type_that_agentflow_knows_needs_no_file():
    assert levels("", AGENTFLOW_EVENT_LOG_TYPE__INPUT_EVENT_LEVEL="verbose") == {"_input_event": "verbose"}


CASES = {
    "nearly the key": (
        "event-log.type.shop.order.levl: off\n",
        """
        job.yaml:7: unknown key 'event-log.type.shop.order.levl'
          7 | event-log.type.shop.order.levl: off
              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ did you mean 'event-log.type.shop.order.level'?
        help: agentflow schema --describe event-log
        """,
    ),
    "a name without a key": (
        "event-log: {type: {shop: verbose}}\n",
        """
        job.yaml:7: unknown key 'event-log.type.shop'
          7 | event-log: {type: {shop: verbose}}
                                 ^^^^ did you mean 'event-log.type.shop.level'?
        help: agentflow schema --describe event-log
        """,
    ),
    "a wrong value": (
        "event-log: {type: {shop.level: verbos}}\n",
        """
        job.yaml:7: event-log.type.shop.level is unknown: 'verbos'
          7 | event-log: {type: {shop.level: verbos}}
                                             ^^^^^^ did you mean 'verbose'? one of off, standard, verbose
        help: agentflow schema --describe event-log
        """,
    ),
    "an empty part": (
        "event-log.type.shop..level: off\n",
        """
        job.yaml:7: key 'event-log.type.shop..level' has an empty part
          7 | event-log.type.shop..level: off
              ^^^^^^^^^^^^^^^^^^^^^^^^^^
        """,
    ),
    "the key of the section is misspelled": (
        "event-log.typ.shop.level: off\n",
        """
        job.yaml:7: unknown key 'event-log.typ.shop.level'
          7 | event-log.typ.shop.level: off
              ^^^^^^^^^^^^^^^^^^^^^^^^ did you mean 'event-log.type'?
        help: agentflow schema --describe event-log
        """,
    ),
    "twice": (
        "event-log.type.a.level: off\nevent-log: {type: {a.level: verbose}}\n",
        """
        job.yaml:8: key 'event-log.type.a.level' is set twice, first in line 7
          7 | event-log.type.a.level: off
          8 | event-log: {type: {a.level: verbose}}
                                 ^^^^^^^ remove one of them
        """,
    ),
    "a share above the whole": (
        "event-log.sampling: 1.5\n",
        """
        job.yaml:7: event-log.sampling is too large: 1.5
          7 | event-log.sampling: 1.5
                                  ^^^ at most 1
        help: agentflow schema --describe event-log
        """,
    ),
    "no share": (
        "event-log.sampling: half\n",
        """
        job.yaml:7: event-log.sampling is not a number: 'half'
          7 | event-log.sampling: half
                                  ^^^^ a number is wanted, such as 0.01
        help: agentflow schema --describe event-log
        """,
    ),
    "one target of several is unknown": (
        "event-log.target: [file, kafak]\n",
        """
        job.yaml:7: event-log.target is unknown: 'kafak'
          7 | event-log.target: [file, kafak]
                                       ^^^^^ did you mean 'kafka'? one of file, stdout, kafka, otel
        help: agentflow schema --describe event-log
        """,
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_what_is_wrong_is_told_with_the_nearest_key(text, expected):
    assert problems(GOOD + text) == [told(expected)]


def test_variable_of_an_unknown_type_is_told_with_the_nearest_one():
    (problem,) = problems(GOOD, variables={"AGENTFLOW_EVENT_LOG_TYPE__INPUT_EVEN_LEVEL": "off"})
    assert "did you mean AGENTFLOW_EVENT_LOG_TYPE__INPUT_EVENT_LEVEL?" in problem


def test_wrong_keys_of_a_profile_that_is_not_chosen_are_told():
    (problem,) = problems(GOOD + "profile: {prod: {event-log.type.a.level: loud}}\n")
    assert "event-log.type.a.level is unknown: 'loud'" in problem
