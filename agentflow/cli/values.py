"""Values of keys: from what is written to what the engine holds."""

from __future__ import annotations

import math
import re
from typing import Any

from agentflow.api.durations import duration_ms, size_bytes
from agentflow.cli.keys import Key, Kind, duration_text, size_text
from agentflow.plan.file_problems import ProblemList
from agentflow.plan.problems import nearest
from agentflow.plan.yaml_source import Items, Mapping, Scalar, Value, plain_scalar

_DURATION_UNITS = "ms, s, m, h, d"
_SIZE_UNITS = "B, KiB, MiB, GiB"
AGENT_FILE = re.compile(r"(?P<path>.+\.(yaml|yml|json))(#(?P<name>.+))?", re.IGNORECASE)
"""How a job names an agent of another file: ``agents.yaml``, ``agents.yaml#support``."""
AGENT_NAME = re.compile(r"[\w. -]+")
"""How a job names an agent of its own file."""
_AGENT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class NoValue:
    """Stands for a value that is wrong; its problem is told."""


NO_VALUE = NoValue()


def free_value(value: Value) -> Any:  # noqa: ANN401 (options of agents)
    """Return a value of the ``config`` section as plain Python."""
    if isinstance(value, Scalar):
        return value.value
    if isinstance(value, Items):
        return [free_value(item) for item in value.items]
    return {name: free_value(entry) for name, _, entry in value.entries}


def key_value(key: Key, value: Value, problems: ProblemList) -> Any:  # noqa: ANN401 (any key)
    """Return the value of ``key`` as its struct holds it; NO_VALUE, and a problem, when it is wrong."""
    if key.kind is Kind.TEXTS:
        return _texts(key, value, problems)
    if key.kind is Kind.COLUMNS and isinstance(value, Mapping):
        return _columns(key, value, problems)
    if not isinstance(value, Scalar):
        return _wrong(key, value, problems, f"is {_described(value)}", _wanted(key))
    if value.value is None:
        if key.is_optional:
            return None
        return _wrong(key, value, problems, "has no value", _wanted(key))
    if key.kind in (Kind.DURATION, Kind.SIZE):
        return _measure(key, value, problems)
    if key.kind in (Kind.COUNT, Kind.NUMBER):
        return _count(key, value, problems)
    if key.kind is Kind.FLAG:
        flag = plain_scalar(value.text) if value.is_loose else value.value
        return flag if isinstance(flag, bool) else _wrong(key, value, problems, f"is {_described(value)}", _wanted(key))
    return _text(key, value, problems)


def _wrong(key: Key, value: Value, problems: ProblemList, what: str, note: str) -> NoValue:
    problems.add(f"{key.name} {what}", value.place, note=note, help=describe_command(key.path))
    return NO_VALUE


def describe_command(path: tuple[str, ...]) -> str:
    """Return the command that describes the section of a key (or of a section itself)."""
    return f"agentflow schema --describe {path[0]}" if path else "agentflow schema --describe"


def _described(value: Value) -> str:
    if isinstance(value, Scalar):
        kind = {type(None): "null", bool: "a truth value", int: "a number", float: "a number"}.get(type(value.value))
        return f"{kind}: {value.text}" if kind else f"'{value.text}'"
    return "a list" if isinstance(value, Items) else "a mapping"


def _wanted(key: Key) -> str:
    example = {
        Kind.DURATION: "a duration is wanted, such as 5s",
        Kind.SIZE: "a size is wanted, such as 64MiB",
        Kind.COUNT: "a whole number is wanted",
        Kind.NUMBER: "a number is wanted, such as 0.01",
        Kind.FLAG: "true or false is wanted",
        Kind.CHOICE: f"one of {', '.join(key.choices)}",
        Kind.COLUMNS: "names and types are wanted, such as {stars: int64, text: string}",
    }
    return example.get(key.kind, "a text is wanted")


def _measure(key: Key, value: Scalar, problems: ProblemList) -> Any:  # noqa: ANN401 (a number, or NO_VALUE)
    is_duration = key.kind is Kind.DURATION
    units, noun = (_DURATION_UNITS, "duration") if is_duration else (_SIZE_UNITS, "size")
    number = plain_scalar(value.text) if value.is_loose else value.value
    if isinstance(number, int | float) and not isinstance(number, bool):
        guess = f"{value.text}{'s' if is_duration else 'MiB'}"
        return _wrong(key, value, problems, f"has no unit: {value.text}", f"did you mean '{guess}'? units: {units}")
    try:
        measured = duration_ms(value.text) if is_duration else size_bytes(value.text)
    except (ValueError, OverflowError):
        example = "5s" if is_duration else "64MiB"
        return _wrong(
            key,
            value,
            problems,
            f"is not a {noun}: '{value.text}'",
            f"a number with a unit ({units}), such as '{example}'",
        )
    return _limited(key, value, measured, problems)


def _count(key: Key, value: Scalar, problems: ProblemList) -> Any:  # noqa: ANN401 (a number, or NO_VALUE)
    number = plain_scalar(value.text) if value.is_loose else value.value
    if key.kind is Kind.NUMBER:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            return _wrong(key, value, problems, f"is not a number: '{value.text}'", _wanted(key))
        return _limited(key, value, float(number), problems)
    if type(number) is not int:
        return _wrong(key, value, problems, f"is not a whole number: '{value.text}'", "digits, such as 1000")
    return _limited(key, value, number, problems)


def _limited(key: Key, value: Scalar, number: float, problems: ProblemList) -> Any:  # noqa: ANN401 (a number, or NO_VALUE)
    def shown(limit: int) -> str:
        if key.kind is Kind.DURATION:
            return duration_text(limit) if limit else "0s"
        return size_text(limit) if key.kind is Kind.SIZE else str(limit)

    if key.least is not None and number < key.least:
        return _wrong(key, value, problems, f"is too small: {value.text}", f"at least {shown(key.least)}")
    if key.most is not None and number > key.most:
        return _wrong(key, value, problems, f"is too large: {value.text}", f"at most {shown(key.most)}")
    if key.above is not None and number <= key.above:
        return _wrong(key, value, problems, f"is too small: {value.text}", f"more than {shown(key.above)}")
    return number


def _text(key: Key, value: Scalar, problems: ProblemList) -> Any:  # noqa: ANN401 (a text, or NO_VALUE)
    text = value.text if value.is_loose else value.value
    if key.choices:
        if value.text in key.choices:  # also where YAML reads a truth value: off
            return value.text
        near = nearest(value.text.replace("_", "-"), key.choices)
        note = f"did you mean '{near}'? " if near else ""
        return _wrong(key, value, problems, f"is unknown: '{value.text}'", f"{note}one of {', '.join(key.choices)}")
    if not isinstance(text, str):
        return _wrong(key, value, problems, f"is {_described(value)}", f'a text is wanted; write "{value.text}"')
    if not text.strip() and not key.is_verbatim:
        return _wrong(key, value, problems, "is an empty text", "a text is wanted")
    if key.name == "agent" and not any(form.fullmatch(text) for form in (_AGENT, AGENT_FILE, AGENT_NAME)):
        return _wrong(key, value, problems, f"is not module:name: '{text}'", "such as shop.agents:ReviewAgent")
    if key.pattern and not re.search(key.pattern, text):
        return _wrong(
            key, value, problems, f"is not a valid name: '{text}'", "letters, digits and . _ - (at most 100), no spaces"
        )
    return text


def _columns(key: Key, value: Mapping, problems: ProblemList) -> Any:  # noqa: ANN401 (names and types, or NO_VALUE)
    from agentflow.connectors.column_types import column_type  # for jobs with columns only

    columns: dict[str, str] = {}
    count = len(problems.found)
    for name, place, entry in value.entries:
        text = entry.text if isinstance(entry, Scalar) else ""
        quoted = '; types with , or : are written in quotes, such as "decimal(10,2)"'
        if name in columns:
            _wrong(key, Scalar(name, name, place), problems, f"has '{name}' twice", "remove one of them")
        elif not isinstance(entry, Scalar) or entry.value is None:
            _wrong(key, entry, problems, f"has no type for '{name}'", f"a type is wanted, such as string{quoted}")
        else:
            try:
                column_type(text)
            except ValueError as error:
                _wrong(
                    key, entry, problems, f"has no type for '{name}': {error}", f"such as string, int64, double{quoted}"
                )
        columns[name] = text
    if not columns:
        return _wrong(key, value, problems, "has no columns", _wanted(key))
    return NO_VALUE if len(problems.found) > count else columns


def _texts(key: Key, value: Value, problems: ProblemList) -> Any:  # noqa: ANN401 (texts, or NO_VALUE)
    items = value.items if isinstance(value, Items) else [value]
    if isinstance(value, Scalar) and value.value is None:
        if key.is_optional:
            return None
        items = []
    texts: list[str] = []
    for item in items:
        if not isinstance(item, Scalar):
            return _wrong(key, item, problems, f"is {_described(item)}", "a text, or a list of texts")
        text = _text(key, item, problems)
        if text is NO_VALUE:
            return NO_VALUE
        texts.append(text)
    if not texts and not key.is_verbatim and key.default != ():
        return _wrong(key, value, problems, "has no value", "a text, or a list of texts")
    return tuple(texts)
