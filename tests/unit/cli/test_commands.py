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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("run j.yaml --nope", "unknown argument '--nope' of 'agentflow run'\n"),
        ("run j.yaml --acept", "unknown argument '--acept' of 'agentflow run', did you mean '--accept'?\n"),
        ("run j.yaml --once", "unknown argument '--once' of 'agentflow run'"),
        ("state get j.yaml --key k --path x", "unknown argument '--path' of 'agentflow state get'\n"),
        ("savepoint create j.yaml --dir x", "unknown argument '--dir' of 'agentflow savepoint create'\n"),
        ("trace show --fromat text", "of 'agentflow trace show', did you mean '--format'?\n"),
        ("--nope", "unknown argument '--nope' of 'agentflow'\n"),
    ],
)
def test_unknown_argument_is_that_of_its_command_and_only_flags_of_it_are_suggested(arguments, told, capsys):
    assert main(arguments.split()) == 2
    assert told in capsys.readouterr().err


def test_misspelled_verb_of_inbox_is_named_and_a_job_is_still_a_job(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["inbox", "aprove", "j.yaml", "x"]) == 2
    assert "unknown verb 'aprove', did you mean 'approve'?" in capsys.readouterr().err
    assert main(["inbox", "j.yaml"]) == 2
    assert "j.yaml: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "name", "told"),
    [
        ("k", "", "the name of the signal is empty"),
        ('{"$bytes": "!!"}', "paid", "the bytes of the key are no base64"),
        ('{"$bytes": 5}', "paid", "the bytes of the key are no base64"),
    ],
)
def test_signal_without_a_name_or_with_a_key_that_is_none_is_refused(key, name, told, capsys, tmp_path):
    (tmp_path / "subtask-0").mkdir()
    assert main(["signal", str(tmp_path), key, name, "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {told}")
    assert "bug" not in said
