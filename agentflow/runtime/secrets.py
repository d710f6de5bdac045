"""Secrets of resources: references are resolved where a resource is built, and the values are kept out of everything that is written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agentflow.api.references import (
    MASK,
    REFERENCE,
    has_reference,
    is_secret_name,
    meant_reference,
    without_line_end,
    written_forms,
)
from agentflow.errors import ConfigError

_PUBLIC_NAMES: Final = frozenset(
    {"base_url", "api_base_url", "endpoint", "azure_endpoint", "endpoint_url", "host", "port", "region", "region_name"}
    | {"model", "path", "command", "cwd", "script", "api_version", "deployment"}
)
_LEAST: Final = 8  # what is shorter, and has no secret's name, may be an everyday word


class Secrets:
    """Resolves references, and remembers what must not be seen."""

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = variables
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self._first: set[str] = set()
        self._longest = 0

    def resolve(self, value: Any, name: str = "", place: str = "") -> Any:  # noqa: ANN401 (JSON)
        """Return an argument of a resource with its references replaced.

        Args:
            value: JSON.
            name: Name of the argument: most are secrets where they are references.
            place: What the argument belongs to, for errors.

        Raises:
            ConfigError: A reference leads nowhere, or is written as in a shell.
        """
        if isinstance(value, dict):
            return {inner: self.resolve(one, inner, place) for inner, one in value.items()}
        if isinstance(value, list):
            return [self.resolve(one, name, place) for one in value]
        if not isinstance(value, str):
            return value
        if has_reference(value):
            resolved = REFERENCE.sub(lambda match: self._replacement(match, name, place), value)
            if is_secret_name(name):
                self._remember(resolved)
            return resolved
        if (meant := meant_reference(name, value)) is not None:
            raise ConfigError([f"{place}: '{value}' of '{name}' is no reference: write {meant}"])
        if is_secret_name(name) and len(value) >= _LEAST:
            self._remember(value)
        return value

    def remember(self, arguments: Mapping[str, Any]) -> None:
        """Remember the secrets among the arguments of a resource that was made by somebody else, or among the options of an agent."""
        for name, value in arguments.items():
            if isinstance(value, dict):
                self.remember(value)
            elif isinstance(value, str) and is_secret_name(name) and len(value) >= _LEAST:
                self._remember(value)

    @property
    def has_any(self) -> bool:
        """Whether there is anything to leave out."""
        return self._pattern is not None

    def scrub(self, text: str) -> str:
        """Return a text without secrets."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def begun(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a secret."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first and any(secret.startswith(text[start:]) for secret in self._values):
                return len(text) - start
        return 0

    def _remember(self, secret: str) -> None:
        if (forms := written_forms(secret)) and not forms <= self._values:
            self._values |= forms
            longest_first = sorted(self._values, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))
            self._first, self._longest = {value[0] for value in self._values}, len(longest_first[0])

    def _replacement(self, match: re.Match[str], name: str, place: str) -> str:
        if match["escape"]:
            return "${"
        kind, rest = match["kind"], match["rest"]
        if kind == "env" and match["close"]:
            variable, has_default, default = rest.partition(":-")
            held = self._variables.get(variable)
            if not held and has_default:
                return default
            if held is None:
                raise ConfigError([f"{place}: the environment variable {variable} of '{name}' is not set; set it"])
            value = without_line_end(held)
        elif kind == "file" and match["close"]:
            try:
                value = without_line_end(Path(rest).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError([f"{place}: the file '{rest}' of '{name}' cannot be read: {error}"]) from None
        else:
            raise ConfigError([f"{place}: '{match[0]}' of '{name}' is no reference: ${{env:NAME}} or ${{file:path}}"])
        if is_secret_name(name) or (name not in _PUBLIC_NAMES and len(value) >= _LEAST):
            self._remember(value)
        return value


class StreamScrubber:
    """Leaves secrets out of a text that comes in pieces: what may be the beginning of one is held back until more has come."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._held = ""

    def take(self, piece: str) -> str:
        """Return what can be shown now that a piece has come."""
        text = self._secrets.scrub(self._held + piece)
        shown = len(text) - self._secrets.begun(text)
        self._held = text[shown:]
        return text[:shown]

    def rest(self) -> str:
        """Return what is held back, when no more comes."""
        held, self._held = self._held, ""
        return held
