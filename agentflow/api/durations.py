"""Durations and sizes with units: what configuration, decorators and flags accept."""

from __future__ import annotations

import re
from datetime import timedelta

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)")
_DURATION_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|KB|MB|GB)")
_SIZE_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def duration_ms(value: timedelta | str) -> int:
    """Return a duration in whole milliseconds.

    Args:
        value: A timedelta, or a number with a unit: ``"250ms"``, ``"5s"``, ``"1.5m"``, ``"2h"``, ``"30d"``.

    Raises:
        ValueError: Not such a text, or negative.
    """
    if isinstance(value, timedelta):
        ms = round(value / timedelta(milliseconds=1))
        if ms < 0:
            msg = f"a duration is not negative: {value!r}"
            raise ValueError(msg)
        return ms
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        msg = f"{value!r} is not a duration; write a number with a unit (ms, s, m, h, d), such as '5s'"
        raise ValueError(msg)
    return _rounded(float(match[1]) * _DURATION_MS[match[2]], value)


def size_bytes(value: str) -> int:
    """Return a size in bytes: ``"64MiB"``, ``"512 KiB"``, ``"10MB"``, ``"100B"``.

    Raises:
        ValueError: Not such a text.
    """
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        msg = f"{value!r} is not a size; write a number with a unit (B, KiB, MiB, GiB), such as '64MiB'"
        raise ValueError(msg)
    return _rounded(float(match[1]) * _SIZE_BYTES[match[2]], value)


def _rounded(number: float, text: object) -> int:
    if number >= 2**63:
        msg = f"{text!r} is too large"
        raise ValueError(msg)
    return round(number)
