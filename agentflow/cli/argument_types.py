"""What argparse reads arguments with: a value, or why the text is none."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def from_one(what: str) -> Callable[[str], int]:
    """Return what reads a whole number from 1 on; ``what`` says what a text that is none is not."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            msg = f"'{text}' is no {what}, write one from 1 on"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return read


def duration(text: str) -> int:
    """Return a duration in milliseconds."""
    from agentflow.api.durations import duration_ms

    try:
        return duration_ms(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
