"""A bar is for people: on a terminal, on standard error, and gone in the end."""

from __future__ import annotations

import io
import sys

import pytest

from agentflow.cli.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_no_terminal_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        bar("copying", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_it_shows_what_is_done_and_leaves_nothing_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with ProgressBar() as bar:
        bar("waiting", 0, 0)
        bar("copying the state", 2**20, 2**22)
        bar("copying the state", 2**22, 2**22)
    assert capsys.readouterr().out == ""
    assert "copying the state" in terminal.getvalue()
    assert "4.0 of 4.0 MiB" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K"), "the line is erased"


def test_a_dumb_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with ProgressBar() as bar:
        bar("copying", 1, 2)
    assert terminal.getvalue() == ""
