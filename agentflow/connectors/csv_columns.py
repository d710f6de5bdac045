"""Columns of text as values: what the fields of a CSV file mean.

A field that says null (`null-values`) is None in a column of any type. Types that nobody has declared are found out from the first rows of a
file: int64, double or boolean where all of them are that, else string. A text is a number only if it is written as one writes numbers:
``007`` and ``+5`` are text, so that what is no number keeps its zeros.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any

import msgspec

from agentflow.connectors.column_types import INTEGERS, ColumnType

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DIGITS_MAX = 18  # of what is taken for a whole number; longer ones name something


class TextColumn:
    """One column.

    Args:
        name: Its name.
        kind: Its type.
        nulls: Texts that mean null.
        is_declared: Whether somebody has said what its type is.
    """

    def __init__(self, name: str, kind: ColumnType, nulls: frozenset[str], *, is_declared: bool) -> None:
        self.name = name
        self.kind = kind
        self._nulls = nulls
        self._is_declared = is_declared
        self._convert = _converter(kind)

    def values(self, texts: Sequence[str]) -> Sequence[Any]:
        """Return the values of many fields.

        Raises:
            ValueError: One of them is none.
        """
        nulls = self._nulls
        has_nulls = not nulls.isdisjoint(texts)
        present = [text for text in texts if text not in nulls] if has_nulls else texts
        values = self._present(present)
        if not has_nulls:
            return values
        rest = iter(values)
        return [None if text in nulls else next(rest) for text in texts]

    def _present(self, texts: Sequence[str]) -> Sequence[Any]:
        name = self.kind.name
        if name == "string":
            return texts
        if name in INTEGERS:
            numbers = list(map(int, texts))
            if list(map(str, numbers)) == list(texts):
                least, most = INTEGERS[name]
                if numbers and not least <= min(numbers) <= max(numbers) <= most:
                    raise ValueError
                return numbers
        elif name == "double" and (
            not any("_" in text for text in texts) if self._is_declared else all(map(_NUMBER.fullmatch, texts))
        ):
            return list(map(float, texts))
        return [self._converted(text) for text in texts]

    def _converted(self, text: str) -> Any:  # noqa: ANN401 (any value)
        if not self._is_declared and self.kind.name in ("int64", "double") and not _NUMBER.fullmatch(text):
            msg = "not written as a number"
            raise ValueError(msg)
        return self._convert(text)

    def value(self, text: str) -> Any:  # noqa: ANN401 (any value)
        """Return the value of one field.

        Raises:
            ValueError: It has none; says why.
        """
        if text in self._nulls:
            return None
        try:
            return self._converted(text)
        except (ValueError, ArithmeticError, msgspec.DecodeError) as error:
            how = "declared" if self._is_declared else "found in the first rows; declare another one in `types`"
            shown = text if len(text) <= 40 else text[:39] + "…"
            msg = f"column '{self.name}': '{shown}' is no {self.kind} ({how})"
            raise ValueError(msg) from error


def inferred_type(texts: Sequence[str], nulls: frozenset[str]) -> ColumnType:
    """Return the type that all fields of a column fit; string where there are none."""
    present = [text for text in texts if text not in nulls]
    if present and all(map(_NUMBER.fullmatch, present)):
        if not all(text.removeprefix("-").isdecimal() for text in present):
            return ColumnType("double")
        return ColumnType("int64" if max(map(len, present)) <= _DIGITS_MAX else "string")
    if present and all(text in _TRUTH for text in present):
        return ColumnType("boolean")
    return ColumnType("string")


def _converter(kind: ColumnType) -> Callable[[str], Any]:
    if kind.name in INTEGERS:
        return lambda text: _integer(text, *INTEGERS[kind.name])
    if kind.name == "decimal":
        return _decimal_converter(kind)
    return _CONVERTERS[kind.name]


def _integer(text: str, least: int, most: int) -> int:
    number = int(_ascii(text))
    if not least <= number <= most:
        msg = "out of range"
        raise ValueError(msg)
    return number


def _float(text: str) -> float:
    return float(_ascii(text))


def _ascii(text: str) -> str:
    """Refuse what Python takes for a number and nobody else does: ``1_000``, digits of other scripts."""
    if "_" in text or not text.isascii():
        msg = "no number"
        raise ValueError(msg)
    return text


def _boolean(text: str) -> bool:
    if text in {"0", "1"}:
        return text == "1"
    if text not in _TRUTH:
        msg = "no truth value"
        raise ValueError(msg)
    return _TRUTH[text]


def _decimal_converter(kind: ColumnType) -> Callable[[str], str]:
    context = Context(prec=kind.digits, traps=[InvalidOperation, Inexact])
    quantum = Decimal(1).scaleb(-kind.scale)

    def convert(text: str) -> str:
        number = Decimal(_ascii(text)).quantize(quantum, context=context)
        if not number.is_finite():
            msg = "no number"
            raise ValueError(msg)
        return format(number, "f")

    return convert


def _timestamp(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        msg = "it has no offset"
        raise ValueError(msg)
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _local_timestamp(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        msg = "it has an offset"
        raise ValueError(msg)
    return moment.isoformat(timespec="microseconds")


_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "boolean": _boolean,
    "float": _float,
    "double": _float,
    "date": lambda text: date.fromisoformat(text).isoformat(),
    "time": lambda text: time.fromisoformat(text).isoformat(timespec="microseconds"),
    "timestamp": _timestamp,
    "timestamp-ntz": _local_timestamp,
    "binary": lambda text: base64.b64decode(text, validate=True),
    "json": msgspec.json.decode,
}
