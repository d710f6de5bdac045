"""Types of columns, as they are written in a job file and in code.

    string  boolean  int8 int16 int32 int64  uint8 uint16 uint32 uint64  float double  decimal(DIGITS,SCALE)
    date  time  timestamp  timestamp-ntz  binary  json  list<TYPE>  map<TYPE>  struct<NAME: TYPE, …>

`timestamp` is an instant, kept in UTC with microseconds; `timestamp-ntz` is what a clock shows, without a time zone. `json` holds any value,
as JSON text. Keys of a `map` are text. ``int``, ``float64``, ``bool`` and ``text`` are other names of `int64`, `double`, `boolean` and
`string`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import msgspec

INTEGERS = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
"""Smallest and largest value by type."""
SCALARS = (
    "string",
    "boolean",
    *INTEGERS,
    "float",
    "double",
    "decimal",
    "date",
    "time",
    "timestamp",
    "timestamp-ntz",
    "binary",
    "json",
)
_ALIASES = {"int": "int64", "bool": "boolean", "text": "string", "float32": "float", "float64": "double"}
_NESTED = ("list", "map", "struct")
_TOKEN = re.compile(r"\s*([^\W\d][\w-]*|[<>(),:]|\d+|\"[^\"]*\"|\S)")
_DIGITS_MAX = 76
_DEPTH_MAX = 16


class ColumnType(msgspec.Struct, frozen=True):
    """A type, parsed.

    Attributes:
        name: Its name.
        digits: Of a decimal: all digits.
        scale: Of a decimal: digits behind the point.
        fields: Of a struct: names and types; of a list or map: the type of its values, without a name.
    """

    name: str
    digits: int = 0
    scale: int = 0
    fields: tuple[tuple[str, ColumnType], ...] = ()

    @property
    def values(self) -> ColumnType:
        """Type of the values of a list or map."""
        return self.fields[0][1]

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.digits},{self.scale})"
        if self.name == "struct":
            return f"struct<{', '.join(f'{_name_text(name)}: {kind}' for name, kind in self.fields)}>"
        return f"{self.name}<{self.values}>" if self.fields else self.name


def column_types(columns: Mapping[str, str | ColumnType]) -> dict[str, ColumnType]:
    """Return the types of columns, parsed where they are not.

    Raises:
        ValueError: One of them is no type; names the column.
    """
    parsed = {}
    for name, text in columns.items():
        try:
            parsed[name] = column_type(text) if isinstance(text, str) else text
        except ValueError as error:
            msg = f"column '{name}': {error}"
            raise ValueError(msg) from error
    return parsed


def column_type(text: str) -> ColumnType:
    """Return a type, parsed.

    Raises:
        ValueError: It is none; says what is wrong.
    """
    tokens = _TOKEN.findall(text)
    found, rest = _read_type(tokens, 0)
    if rest != len(tokens):
        msg = f"'{text}' is no type: '{tokens[rest]}' is too much"
        raise ValueError(msg)
    return found


def _read_type(tokens: list[str], at: int, depth: int = 0) -> tuple[ColumnType, int]:
    written = _token(tokens, at)
    name = _ALIASES.get(written, written)
    if depth > _DEPTH_MAX:
        msg = f"types are nested more than {_DEPTH_MAX} deep"
        raise ValueError(msg)
    if name == "decimal":
        return _read_decimal(tokens, at + 1)
    if name in SCALARS:
        return ColumnType(name), at + 1
    if name not in _NESTED:
        near = difflib.get_close_matches(name, [*SCALARS, *_NESTED, *_ALIASES], n=1)
        msg = f"'{written}' is no type" + (
            f"; did you mean '{near[0]}'?" if near else "; such as string, int64, list<double>"
        )
        raise ValueError(msg)
    at = _skip(tokens, at + 1, "<", name)
    if name != "struct":
        inner, at = _read_type(tokens, at, depth + 1)
        return ColumnType(name, fields=(("", inner),)), _skip(tokens, at, ">", name)
    fields: dict[str, ColumnType] = {}
    while True:
        field = _token(tokens, at).strip('"')
        if field in fields:
            msg = f"a struct has two fields '{field}'"
            raise ValueError(msg)
        fields[field], at = _read_type(tokens, _skip(tokens, at + 1, ":", "struct"), depth + 1)
        if _token(tokens, at) != ",":
            return ColumnType(name, fields=tuple(fields.items())), _skip(tokens, at, ">", name)
        at += 1


def _read_decimal(tokens: list[str], at: int) -> tuple[ColumnType, int]:
    words = tokens[at : at + 5]
    if [words[0:1], words[2:3], words[4:5]] != [["("], [","], [")"]] or not (words[1] + words[3]).isdigit():
        msg = "a decimal is written with all its digits and those behind the point: decimal(10,2)"
        raise ValueError(msg)
    digits, scale = int(words[1]), int(words[3])
    if not 1 <= digits <= _DIGITS_MAX or scale > digits:
        msg = f"decimal({digits},{scale}) is not possible: 1 to {_DIGITS_MAX} digits, not more of them behind the point"
        raise ValueError(msg)
    return ColumnType("decimal", digits, scale), at + 5


def _token(tokens: list[str], at: int) -> str:
    if at == len(tokens):
        msg = "the type ends too early" if tokens else "a type is wanted, such as string"
        raise ValueError(msg)
    return tokens[at]


def _skip(tokens: list[str], at: int, wanted: str, name: str) -> int:
    if at == len(tokens) or tokens[at] != wanted:
        example = {"list": "list<string>", "map": "map<int64>", "struct": "struct<name: string, count: int64>"}[name]
        msg = f"'{wanted}' is missing in a {name}, such as {example}"
        raise ValueError(msg)
    return at + 1


def _name_text(name: str) -> str:
    return name if re.fullmatch(r"[^\W\d][\w-]*", name) else f'"{name}"'
