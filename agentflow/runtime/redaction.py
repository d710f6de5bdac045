"""What must not be seen in logs, traces and previews, and how it is left out: the rules of `redaction.*`.

A rule names a secret by its field (a pattern of names), by its place (a path), or by its look (a regular expression). All of them
reach through any nesting, also through JSON documents inside of texts, as the arguments of tools are. What no rule names comes back
as the same object, so that callers see that nothing was redacted.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentflow.errors import ConfigError
from agentflow.runtime.settings import RedactionSettings

MASK = "***"
_SECRET_NAME = re.compile("passw|secret|token|apikey|authorization|credential|privatekey").search
_OPEN, _BUT_NUMBERS, _ALWAYS = range(3)

_FOLDED = str.maketrans("", "", "-_")
_PATH_STEP = re.compile(
    r"""\.(?P<name>[^.\[\]'"*\s]+)|\.(?P<any>\*)|\[\*\](?P<all>)|\[(?P<place>\d+)\]|\['(?P<quoted>[^']+)'\]"""
)
_PAIR = re.compile(
    r"""(?ix) (?P<name> [\w-]+ ) ["']? \s* [=:] \s* (?: (?:bearer|basic) \s+ )?
    (?: "(?P<in_double>[^"]*)" | '(?P<in_single>[^']*)' | (?P<bare> [^\s"',;&}\])]+ ) )"""
)
_NUMBER = re.compile(r"[\d.]+").fullmatch
_HASH_KEY_LEAST = 16
_NAMES_KNOWN_MAX = 10_000

_Place = str | int | None
"""A step of a path: a name, a place in a list, or None: any of either."""


class _PathNode:
    """Where paths have come to: what may follow, and whether one ends here."""

    __slots__ = ("is_end", "steps")

    def __init__(self) -> None:
        self.steps: dict[_Place, _PathNode] = {}
        self.is_end = False


_Nodes = tuple[_PathNode, ...]


class Redaction:
    """The rules of a job, compiled.

    Args:
        settings: The rules.

    Raises:
        ConfigError: A rule cannot be read; with all problems.
    """

    def __init__(self, settings: RedactionSettings | None = None) -> None:
        settings = settings or RedactionSettings()
        if problems := redaction_problems(settings):
            raise ConfigError([f"{key}: {what}" for key, what in problems])
        fields = [fnmatch.translate(_folded(name)) for name in settings.fields]
        self._fields = re.compile("|".join(fields)).match if fields else None
        self._hides_names = settings.secret_names
        self._names_known: dict[str, int] = {}
        self._patterns = [re.compile(pattern) for pattern in settings.patterns]
        self._root = _path_tree(settings.paths)
        self._hash_key = (
            settings.hash_key.encode()[:64] if settings.replacement == "hash" and settings.hash_key else None
        )
        self.hides_key = settings.key
        """Whether the business key is redacted."""
        self.is_by_shape = not settings.patterns and not _has_places(self._root)
        """Whether names of fields, and where they stand, tell all secrets: not where a text may be one by its look, or by its place in a list."""

    def value(self, value: Any, within: str = "") -> Any:  # noqa: ANN401 (any value)
        """Return a value without secrets; the same object when it has none.

        Args:
            value: What JSON or msgpack holds; it is not changed.
            within: Name of the attribute whose value this is: paths may begin at the attributes, and at the value.
        """
        nodes: _Nodes = (self._root,)
        if within:
            if self._is_secret(within):
                return self._replaced(value)
            nodes += tuple(_following(nodes, within))
        try:
            return self._walked(value, nodes)
        except RecursionError:  # nobody can say what is in there
            return MASK

    def key(self, key: Any) -> Any:  # noqa: ANN401 (any key)
        """Return a business key as it may be seen."""
        return self._replaced(key) if self.hides_key else self._walked(key, ())

    def text(self, text: str) -> str:
        """Return a text for people, as of an error, without what the patterns match, and without values behind secret names: ``api_key=…``."""
        redacted = self._without_matches(text)
        parts: list[str] = []
        done = at = 0
        while (pair := _PAIR.search(redacted, at)) is not None:
            kind = pair.lastgroup or "bare"
            if not self._is_secret(pair["name"], 0 if _NUMBER(pair[kind]) else ""):
                at = pair.end("name")  # what follows may be a name too
                continue
            parts += (redacted[done : pair.start(kind)], self._replaced(pair[kind]))
            done = at = pair.end(kind)
        return "".join([*parts, redacted[done:]])

    # -- one value
    def _walked(self, value: Any, nodes: _Nodes) -> Any:  # noqa: ANN401 (any value)
        if isinstance(value, str):
            return self._without_matches(self._inside(value, nodes))
        if isinstance(value, dict):
            return self._mapping(value, nodes)
        if isinstance(value, list | tuple):
            changed = None
            for place, inner in enumerate(value):
                below = tuple(_following(nodes, place))
                redacted = self._replaced(inner) if _ends(below) else self._walked(inner, below)
                if redacted is not inner:
                    changed = list(value) if changed is None else changed
                    changed[place] = redacted
            return value if changed is None else changed
        if self._patterns:
            return self._scalar(value)
        return value

    def _mapping(self, value: Mapping[Any, Any], nodes: _Nodes) -> Any:  # noqa: ANN401 (a mapping)
        changed: dict[Any, Any] | None = None
        for name, inner in value.items():
            shown = self._walked(name, ()) if self._patterns and not isinstance(name, tuple) else name
            below = tuple(_following(nodes, name))
            if inner is not None and (_ends(below) or (isinstance(name, str) and self._is_secret(name, inner))):
                redacted = self._replaced(inner)
            else:
                redacted = self._walked(inner, below)
            if changed is None and (redacted is not inner or shown is not name):
                changed = {}
                for earlier, kept in value.items():
                    if earlier is name:
                        break
                    changed[earlier] = kept
            if changed is not None:
                changed[_free_name(shown, changed)] = redacted
        return value if changed is None else changed

    def _inside(self, text: str, nodes: _Nodes) -> str:
        """Look into a text that is a JSON document."""
        if text.lstrip()[:1] not in ("{", "["):
            return text
        try:
            document = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return text
        redacted = self._walked(document, nodes)
        return text if redacted is document else msgspec.json.encode(redacted).decode()

    def _scalar(self, value: Any) -> Any:  # noqa: ANN401 (any value)
        """Look at a number, or at bytes, as at the text that they would be."""
        if isinstance(value, bytes):
            text = value.decode("utf-8", "replace")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            text = str(value)
        else:
            return value
        redacted = self._without_matches(text)
        return value if redacted is text else redacted

    def _without_matches(self, text: str) -> str:
        """Return ``text``, the same object, or a text without what the patterns match."""
        for pattern in self._patterns:
            if pattern.search(text):
                text = pattern.sub(lambda match: self._replaced(match[0]) if match[0] else "", text)
        return text

    def spares_numbers(self, name: str) -> bool:
        """Whether a field is secret by its name, but for numbers: how many tokens a model has used."""
        return self._secrecy(name) == _BUT_NUMBERS

    def _is_secret(self, name: str, value: object = "") -> bool:
        secrecy = self._secrecy(name)
        return secrecy != _OPEN and (secrecy == _ALWAYS or type(value) not in (int, float))

    def _secrecy(self, name: str) -> int:
        known = self._names_known.get(name)
        if known is None:
            if len(self._names_known) >= _NAMES_KNOWN_MAX:  # names are data in some values
                self._names_known.clear()
            folded = _folded(name)
            known = _ALWAYS if self._fields is not None and self._fields(folded) else _OPEN
            if known == _OPEN and self._hides_names and _SECRET_NAME(folded):
                known = _BUT_NUMBERS if folded.endswith("tokens") else _ALWAYS
            self._names_known[name] = known
        return known

    def _replaced(self, value: Any) -> str:  # noqa: ANN401 (any value)
        if self._hash_key is None:
            return MASK
        try:
            encoded = msgspec.json.encode(value, order="sorted")
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
            return MASK
        return f"hash:{hashlib.blake2b(encoded, key=self._hash_key, digest_size=8).hexdigest()}"


def redaction_problems(settings: RedactionSettings) -> list[tuple[str, str]]:
    """Return what is wrong with rules, as (key, what)."""
    problems = []
    for pattern in settings.patterns:
        try:
            matches_nothing = re.compile(pattern).search("") is not None
        except (re.error, OverflowError, RecursionError) as error:
            problems.append(("redaction.patterns", f"'{pattern}' is no regular expression: {error}"))
        else:
            if matches_nothing:
                problems.append(("redaction.patterns", f"'{pattern}' matches an empty text, and so everywhere"))
    problems += [
        ("redaction.paths", f"'{path}' is no path; such as $.customer.email or $.items[*].card")
        for path in settings.paths
        if _path_steps(path) is None
    ]
    problems += [("redaction.fields", f"'{name}' names no field") for name in settings.fields if not _folded(name)]
    if settings.replacement == "hash" and len(settings.hash_key or "") < _HASH_KEY_LEAST:
        problems.append(("redaction.hash-key", f"replacement: hash needs one, of {_HASH_KEY_LEAST} characters or more"))
    return problems


def _folded(name: str) -> str:
    """Return a name as rules see it: in lower case, without - and _."""
    return name.translate(_FOLDED).lower()


def _path_steps(path: str) -> list[_Place] | None:
    """Return the steps of a path; None: it is none."""
    if not path.startswith("$"):
        return None
    steps: list[_Place] = []
    at = 1
    while at < len(path):
        step = _PATH_STEP.match(path, at)
        if step is None:
            return None
        name = step["name"] or step["quoted"]
        steps.append(name if name is not None else int(step["place"]) if step["place"] is not None else None)
        at = step.end()
    return steps or None


def _path_tree(paths: Iterable[str]) -> _PathNode:
    root = _PathNode()
    for path in paths:
        node = root
        for step in _path_steps(path) or ():
            node = node.steps.setdefault(step, _PathNode())
        node.is_end = True
    return root


def _has_places(node: _PathNode) -> bool:
    return any(isinstance(step, int) or _has_places(below) for step, below in node.steps.items())


def _following(nodes: _Nodes, step: object) -> Iterable[_PathNode]:
    for node in nodes:
        steps = node.steps
        if steps:
            if isinstance(step, str | int) and (named := steps.get(step)) is not None:
                yield named
            if (anything := steps.get(None)) is not None:
                yield anything


def _ends(nodes: _Nodes) -> bool:
    return any(node.is_end for node in nodes)


def _free_name(name: Any, taken: Mapping[Any, Any]) -> Any:  # noqa: ANN401 (any key)
    """Return a name that is not taken: two redacted names may have become one."""
    free, count = name, 2
    while free in taken:
        free, count = f"{name} ({count})", count + 1
    return free
