"""References in texts: ``${env:NAME}``, ``${env:NAME:-default}``, ``${file:path}``; ``$${`` is a literal ``${``."""

from __future__ import annotations

import re
from collections.abc import Mapping as Variables
from pathlib import Path

import msgspec

from agentflow.plan.file_problems import ProblemList
from agentflow.plan.problems import nearest
from agentflow.plan.yaml_source import Items, Mapping, Scalar, Value, plain_scalar

_REFERENCE = re.compile(r"\$(?P<escape>\$)\{|\$\{(?P<kind>[A-Za-z]\w*):(?P<rest>[^}]*)(?P<close>\}?)")
_KINDS = ("env", "file")


class Reference(msgspec.Struct, frozen=True):
    """A reference in a text.

    Attributes:
        kind: ``env`` or ``file``.
        name: Of the variable, or path of the file.
        default: What counts where the variable is not set; None: nothing does.
    """

    kind: str
    name: str
    default: str | None = None


def references_in(value: Value) -> list[Reference]:
    """Return the references of a value, and of those inside it, that are well formed."""
    if isinstance(value, Items):
        return [found for item in value.items for found in references_in(item)]
    if isinstance(value, Mapping):
        return [found for _, _, entry in value.entries for found in references_in(entry)]
    if not has_reference(value):
        return []
    references = []
    for match in _REFERENCE.finditer(value.text):
        if match["escape"] or not match["close"] or match["kind"] not in _KINDS:
            continue
        name, has_default, default = (
            match["rest"].partition(":-") if match["kind"] == "env" else (match["rest"], "", "")
        )
        references.append(Reference(match["kind"], name, default if has_default else None))
    return references


def has_reference(value: Value) -> bool:
    """Whether a value, or one inside it, has a reference (or something that looks like one)."""
    if isinstance(value, Scalar):
        return isinstance(value.value, str) and _REFERENCE.search(value.text) is not None
    inner = value.items if isinstance(value, Items) else [entry for _, _, entry in value.entries]
    return any(has_reference(item) for item in inner)


def resolved(value: Value, variables: Variables[str, str], problems: ProblemList) -> Value:
    """Return ``value`` with its references replaced; one that leads nowhere becomes a problem of its line."""
    if isinstance(value, Items):
        return Items([resolved(item, variables, problems) for item in value.items], value.place)
    if isinstance(value, Mapping):
        entries = [(name, place, resolved(entry, variables, problems)) for name, place, entry in value.entries]
        return Mapping(entries, value.place)
    if not has_reference(value):
        return value
    text = _REFERENCE.sub(lambda match: _replacement(match, value, variables, problems), value.text)
    return Scalar(
        plain_scalar(text) if value.is_plain else text, text, value.place, is_loose=True, is_plain=value.is_plain
    )


def _replacement(match: re.Match[str], value: Scalar, variables: Variables[str, str], problems: ProblemList) -> str:
    if match["escape"]:
        return "${"
    kind, rest = match["kind"], match["rest"]
    if not match["close"]:
        problems.add(f"the reference '{match[0]}' is not closed", value.place, note="a '}' is missing")
    elif kind == "env":
        name, has_default, default = rest.partition(":-")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            problems.add(
                f"'{match[0]}' names no variable", value.place, note="write ${env:NAME} or ${env:NAME:-default}"
            )
        elif name in variables and (
            variables[name] or not has_default
        ):  # as in a shell, an empty one takes the default
            return variables[name]
        elif has_default:
            return default
        else:
            problems.add(
                f"the environment variable {name} is not set",
                value.place,
                note=f"set it, or give a default: ${{env:{name}:-…}}",
            )
    elif kind == "file":
        return _file_text(rest, value, problems)
    else:
        near = nearest(kind, _KINDS)
        problems.add(
            f"'{match[0]}' is no known reference",
            value.place,
            note=f"did you mean '{near}'?"
            if near
            else "known are ${env:NAME} and ${file:path}; a literal is written $${…}",
        )
    return ""


def _file_text(path: str, value: Scalar, problems: ProblemList) -> str:
    """Return what a file holds, without the line end behind it (secrets are mounted as files with one)."""
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        problems.add(f"the file '{path}' is not UTF-8 text", value.place)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        problems.add(f"the file '{path}' cannot be read: {reason}", value.place)
    except ValueError as error:  # a NUL in the path
        problems.add(f"'{path}' is no path: {error}", value.place)
    return ""
