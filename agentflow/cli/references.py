"""References in texts: ``${env:NAME}``, ``${env:NAME:-default}``, ``${file:path}``; ``$${`` is a literal ``${``."""

from __future__ import annotations

import re
from collections.abc import Mapping as Variables
from pathlib import Path

import msgspec

from agentflow.api.references import REFERENCE, without_line_end
from agentflow.plan.file_problems import ProblemList
from agentflow.plan.reference_forms import form_problem
from agentflow.plan.yaml_source import Items, Mapping, Scalar, Value, plain_scalar

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
    for match in REFERENCE.finditer(value.text):
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
        return isinstance(value.value, str) and REFERENCE.search(value.text) is not None
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
    text = REFERENCE.sub(lambda match: _replacement(match, value, variables, problems), value.text)
    return Scalar(
        plain_scalar(text) if value.is_plain else text, text, value.place, is_loose=True, is_plain=value.is_plain
    )


def _replacement(match: re.Match[str], value: Scalar, variables: Variables[str, str], problems: ProblemList) -> str:
    if match["escape"]:
        return "${"
    wrong = form_problem(match)
    if wrong is not None:
        problems.add(wrong[0], value.place, note=wrong[1])
        return ""
    if match["kind"] == "file":
        return _file_text(match["rest"], value, problems)
    name, has_default, default = match["rest"].partition(":-")
    if name in variables and (variables[name] or not has_default):  # as in a shell, an empty one takes the default
        return without_line_end(variables[name])
    if not has_default:
        note = f"set it, or give a default: ${{env:{name}:-…}}"
        problems.add(f"the environment variable {name} is not set", value.place, note=note)
    return default


def _file_text(path: str, value: Scalar, problems: ProblemList) -> str:
    """Return what a file holds, without the line end behind it (secrets are mounted as files with one)."""
    try:
        return without_line_end(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        problems.add(f"the file '{path}' is not UTF-8 text", value.place)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        problems.add(f"the file '{path}' cannot be read: {reason}", value.place)
    except ValueError as error:  # a NUL in the path
        problems.add(f"'{path}' is no path: {error}", value.place)
    return ""
