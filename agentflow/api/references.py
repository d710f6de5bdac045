"""References in texts: ``${env:NAME}``, ``${env:NAME:-default}``, ``${file:path}``; ``$${`` is a literal ``${``."""

from __future__ import annotations

import json
import re
from typing import Any, Final

REFERENCE: Final = re.compile(r"\$(?P<escape>\$)\{|\$\{(?P<kind>[A-Za-z]\w*):(?P<rest>[^}]*)(?P<close>\}?)")
"""Finds references, and what looks like one."""

MASK: Final = "***"
"""Stands where a secret stood."""

_OF_A_SHELL = re.compile(r"\$\{?([A-Z][A-Z0-9_]+)\}?").fullmatch
_SECRET_NAME = re.compile("passw|secret|token$|apikey|authorization|credential|privatekey").search


def has_reference(text: str) -> bool:
    """Whether a text has a reference (or something that looks like one)."""
    return REFERENCE.search(text) is not None


def meant_reference(name: str, value: object) -> str | None:
    """Return the reference that is meant where a secret is written as in a shell, which nothing replaces: ``${OPENAI_API_KEY}``."""
    written = _OF_A_SHELL(value) if isinstance(value, str) and is_secret_name(name) else None
    return None if written is None else f"${{env:{written[1]}}}"


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a secret most likely: ``api_key``, ``password``, ``auth-token``."""
    return _SECRET_NAME(name.lower().replace("_", "").replace("-", "")) is not None


def without_line_end(text: str) -> str:
    """Return what a reference leads to without the line end behind it: files of secrets, and what ``export`` reads of them, have one."""
    return text.removesuffix("\n").removesuffix("\r")


def written_forms(secret: str) -> set[str]:
    """Return how a secret is written in texts: as it is, within JSON, and as Python shows texts and bytes; without blanks around it."""
    text = secret.strip()
    forms = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
    return (forms | {repr(text.encode(errors="surrogatepass"))[2:-1]}) - {""}


def without_secrets(name: str, value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Return the argument ``name`` as it may be shown: references to secrets stay, secrets themselves do not."""
    if isinstance(value, dict):
        return {inner: without_secrets(inner, one) for inner, one in value.items()}
    if isinstance(value, list):
        return [without_secrets(name, one) for one in value]
    is_secret = isinstance(value, str) and value and is_secret_name(name) and not has_reference(value)
    return MASK if is_secret else value
