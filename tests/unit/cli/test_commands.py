"""What every command has in common: where it is, its help, its JSON, and what it says of arguments that are wrong."""

from __future__ import annotations

import argparse
import importlib

import pytest

from agentflow.cli.main import _COMMANDS, _parser, main

LONG_RUNNING = {"run", "worker"}
"""They write log lines, as JSON where `log.format` says so."""


def parser_of(command: str) -> argparse.ArgumentParser:
    found: argparse.ArgumentParser = _parser()
    for word in command.split():
        (commands,) = [one for one in found._actions if isinstance(one, argparse._SubParsersAction)]
        found = commands.choices[word]
    return found


def every_command(parser: argparse.ArgumentParser, before: str = "") -> list[str]:
    below = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not below:
        return [before.strip()]
    return [name for word, one in below[0].choices.items() for name in every_command(one, f"{before} {word}")]


def test_every_command_is_carried_out_by_a_function():
    assert set(every_command(_parser())) == set(_COMMANDS)
    for place in _COMMANDS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(f"agentflow.cli.{module}"), function)), place


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_help_and_says_what_is_wrong_in_two_lines(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert f"usage: agentflow {command}" in capsys.readouterr().out
    assert main([*command.split(), "--nonsense"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    first, second = told.err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("help: agentflow")
    assert second.endswith("--help")


@pytest.mark.parametrize("command", sorted(set(_COMMANDS) - LONG_RUNNING))
def test_every_command_that_prints_has_json(command):
    flags = {flag for action in parser_of(command)._actions for flag in action.option_strings}
    assert flags & {"--json", "--format"}


@pytest.mark.parametrize(
    "command", [one for one in _COMMANDS if any(a.dest == "config" for a in parser_of(one)._actions)]
)
def test_every_command_with_a_job_file_names_the_one_that_is_not_there(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    actions = parser_of(command)._actions
    values = {"config": "nothing.yaml", "position": "t/0@1"}
    given = [values.get(one.dest, "x") for one in actions if not one.option_strings and one.nargs is None]
    flags = [part for one in actions if one.required and one.option_strings for part in (one.option_strings[0], "1")]
    more = ["--all"] if command == "dlq redrive" else []
    assert main([*command.split(), *given, *flags, *more]) == 2
    told = capsys.readouterr()
    if command == "doctor":  # it says all that it can
        assert "nothing.yaml: there is no such file" in told.out
        assert "the check itself broke" not in told.out
    else:
        assert told.out == ""
        assert told.err.startswith("error: ")
        assert "nothing.yaml" in told.err
