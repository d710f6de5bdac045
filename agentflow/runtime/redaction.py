"""What must not be seen in logs, traces and previews, and how it is left out: the rules of `redaction.*`.

A rule names a secret by its field (a pattern of names), by its place (a path), or by its look (a regular expression). All of them
reach through any nesting, also through JSON documents inside of texts, as the arguments of tools are. What no rule names comes back
as the same object, so that callers see that nothing was redacted.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentflow.api.references import MASK
from agentflow.errors import ConfigError
from agentflow.runtime.settings import RedactionSettings

_SECRET_NAME = re.compile("passw|secret|token|apikey|authorization|credential|privatekey").search
_OPEN, _BUT_NUMBERS, _ALWAYS = range(3)

_FOLDED = str.maketrans("", "", "-_")
_PATH_STEP = re.compile(
    r"""\.(?P<name>[^.\[\]'"*\s]+)|\.(?P<any>\*)|\[\*\](?P<all>)|\[(?P<place>\d+)\]|\['(?P<quoted>[^']+)'\]"""
)
_PAIR = re.compile(
    r"""(?x) (?<![\w-]) (?P<name> [\w-]++ )
    (?: (?: \\*+ ["'] )?+ \s*+ [=:]++ >? | (?P<comma> \\*+ ["'] \s*+ , (?= \s*+ [bBrRuU]{0,2} \\*+ ["'] ) ) ) \s*+"""
)
_OPENS_PAIR = re.compile(r"""[(\[]\s*[bBrRuU]{0,2}\\*["']\Z""").search
_OPENS_QUOTE = re.compile(r"""(?P<escapes>\\*)(?P<quote>["'])\Z""").search
_BEFORE_MAX = 24  # characters before a name that are looked at
_QUOTED = re.compile(r"""[bBfFrRuU]{0,2}(?P<escapes>\\*+)(?P<quote>["'])""")
_QUOTES = {quote: re.compile(rf"(?<!\\)(\\*+){quote}") for quote in ('"', "'")}
_BRACKET_OR_QUOTE = re.compile(r"""(?P<opens>[(\[{])|(?P<closes>[)\]}])|(?<!\\)(?P<escapes>\\*+)(?P<quote>["'])""")
_SCHEME = re.compile(r"(?i)(?:bearer|basic|token|api-?key)[ \t]++(?=[^\s,;&)}\]])")
_ONE_WORD = re.compile(r"""[\w.~+/-]++=*+(?=[\s,;&)}\]\\]|["'](?!\w)|\Z)""")
_BARE = re.compile(r"""[^\s"',;&}\])(\[{\\]++""")
_LINE = re.compile(r"[^\r\n]*+")
_NUMBER = re.compile(r"[\d.]+").fullmatch
_HASH_KEY_LEAST = 16
_NAMES_KNOWN_MAX = 10_000

_Place = str | int | None
"""A step of a path: a name, a place in a list, or None: any of either."""


class PathNode:
    """Where paths have come to: what may follow, and whether one ends here."""

    __slots__ = ("is_end", "steps")

    def __init__(self) -> None:
        self.steps: dict[_Place, PathNode] = {}
        self.is_end = False


Nodes = tuple[PathNode, ...]
"""Where all paths have come to at one place of a value."""


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
        if within and self._is_secret(within):
            return self._replaced(value)
        try:
            return self._walked(value, self.begin(within))
        except RecursionError:  # nobody can say what is in there
            return MASK

    def begin(self, within: str = "") -> Nodes:
        """Return where paths have come to at a value; see `value`."""
        nodes: Nodes = (self._root,)
        return nodes + following(nodes, within) if within else nodes

    def key(self, key: Any) -> Any:  # noqa: ANN401 (any key)
        """Return a business key as it may be seen."""
        try:
            return self._replaced(key) if self.hides_key else self._walked(key, ())
        except RecursionError:
            return MASK

    def text(self, text: str) -> str:
        """Return a text for people, as of an error, without what the patterns match, and without values behind secret names: ``api_key=…``."""
        return self._without_pairs(self._without_matches(text))

    def unread(self, text: str, within: str = "") -> str:
        """Return a text that should have been a value and cannot be decoded, as it may be seen; see `value`.

        Nobody can say which place of it a path means, so that with paths nothing of it is shown.
        """
        return MASK if self._root.steps else self._without_pairs(str(self.value(text, within)))

    def _without_pairs(self, text: str) -> str:
        """Return ``text``, the same object, or a text without the values behind secret names. Takes time by its length, whatever it holds."""
        parts: list[str] = []
        done = at = 0
        while (pair := _PAIR.search(text, at)) is not None:
            name, at = pair["name"], pair.end("name")  # what follows may be a name too
            if self._secrecy(name) == _OPEN or (pair["comma"] and not _opens_pair(text, pair.start())):
                continue
            begin, end = _value_place(text, pair, is_authorization="authorization" in _folded(name))
            value = text[begin:end]
            if begin < end and self._is_secret(name, 0 if _NUMBER(value) else ""):
                parts += (text[done:begin], self._replaced(value))
                done = at = end
        return "".join([*parts, text[done:]]) if parts else text

    # -- one value
    def _walked(self, value: Any, nodes: Nodes) -> Any:  # noqa: ANN401 (any value)
        if isinstance(value, str):
            return self._without_matches(self._inside(value, nodes))
        if isinstance(value, dict):
            return self._mapping(value, nodes)
        if isinstance(value, list | tuple):
            changed = None
            for place, inner in enumerate(value):
                below = following(nodes, place)
                redacted = self._replaced(inner) if _ends(below) else self._walked(inner, below)
                if redacted is not inner:
                    changed = list(value) if changed is None else changed
                    changed[place] = redacted
            return value if changed is None else changed
        if self._patterns:
            return self._scalar(value)
        return value

    def _mapping(self, value: Mapping[Any, Any], nodes: Nodes) -> Any:  # noqa: ANN401 (a mapping)
        changed: dict[Any, Any] | None = None
        for name, inner in value.items():
            shown = self._walked(name, ()) if self._patterns and not isinstance(name, tuple) else name
            below = following(nodes, name)
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

    def _inside(self, text: str, nodes: Nodes) -> str:
        """Look into a text that is a JSON document."""
        if text.lstrip()[:1] not in ("{", "["):
            return text
        try:
            document = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError):
            try:
                document = json.loads(text)  # it takes what Python writes: NaN, and half of a character
            except ValueError:
                return self._undecoded(text, nodes)
            redacted = self._walked(document, nodes)
            return text if redacted is document else json.dumps(redacted)
        redacted = self._walked(document, nodes)
        return text if redacted is document else msgspec.json.encode(redacted).decode()

    def _undecoded(self, text: str, nodes: Nodes) -> str:
        """Look at what begins as JSON and is none, where nobody can say what is in which place of it."""
        if go_below(nodes):
            return MASK
        return (
            self._without_pairs(text) if '"' in text else text
        )  # names have quotes, in JSON; ``[1]: see below`` has none

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


def _opens_pair(text: str, name_at: int) -> bool:
    """Whether a quoted name is the first of a tuple or list, as headers are shown: ``(b'api-key', b'…')``."""
    return _OPENS_PAIR(text, max(0, name_at - _BEFORE_MAX), name_at) is not None


def _value_place(text: str, pair: re.Match[str], *, is_authorization: bool) -> tuple[int, int]:
    """Return where a value begins and ends, without its quotes: a text in quotes, something in brackets, or a word.

    Of an authorization that is no word behind a known scheme all is the value, to the end of the quote that it lies in, or of the line.
    """
    at = pair.end()
    scheme = _SCHEME.match(text, at)
    first = scheme.end() if scheme is not None else at
    if (quoted := _QUOTED.match(text, first)) is not None:
        return quoted.end(), _quote_end(text, quoted)[0]
    if text[first : first + 1] in ("(", "[", "{"):
        return first, _bracket_end(text, first)
    if not is_authorization:
        return first, _word_end(text, first)
    if scheme is not None and (word := _ONE_WORD.match(text, first)) is not None:
        return first, word.end()
    if (around := _OPENS_QUOTE(text, max(0, pair.start() - _BEFORE_MAX), pair.start())) is not None:
        return at, _quote_end(text, around, at)[0]
    line = _LINE.match(text, at)
    assert line is not None, "it matches anything"
    return at, line.end()


def _quote_end(text: str, opening: re.Match[str], at: int = 0) -> tuple[int, int]:
    """Return where the text in a quote ends, and where the closing quote does; the end of all where none closes it.

    A quote in a text that was escaped n times has 2^n - 1 backslashes, and what is escaped within has more: an escaped quote, or
    backslashes at the end of the value. Python's repr doubles them, so that the one looks like the other; then no word follows an end.
    """
    escapes = len(opening["escapes"])
    for mark in _QUOTES[opening["quote"]].finditer(text, at or opening.end()):
        found = len(mark[1])
        is_end = found % (2 * escapes + 2) == escapes and not text[mark.end() : mark.end() + 1].isalnum()
        if found <= escapes or is_end:
            return mark.end() - 1 - min(found, escapes), mark.end()
    return len(text), len(text)


def _bracket_end(text: str, at: int) -> int:
    """Return where what begins with a bracket is closed; the end of all where it is not."""
    depth = 0
    while (mark := _BRACKET_OR_QUOTE.search(text, at)) is not None:
        at = mark.end()
        if mark["quote"]:
            at = _quote_end(text, mark)[1]
        else:
            depth += 1 if mark["opens"] else -1
            if not depth:
                return at
    return len(text)


def _word_end(text: str, at: int) -> int:
    """Return where a word ends, with its brackets: ``Secret('…')``."""
    while (bare := _BARE.match(text, at)) is not None or text[at : at + 1] in ("(", "[", "{", "\\"):
        if bare is not None:
            at = bare.end()
        elif text[at] != "\\":
            at = _bracket_end(text, at)
        elif text[at + 1 : at + 2] in ('"', "'"):
            break
        else:
            at += 1
        if at >= len(text):
            break
    return at


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


def _path_tree(paths: Iterable[str]) -> PathNode:
    root = PathNode()
    for path in paths:
        node = root
        for step in _path_steps(path) or ():
            node = node.steps.setdefault(step, PathNode())
        node.is_end = True
    return root


def _has_places(node: PathNode) -> bool:
    return any(isinstance(step, int) or _has_places(below) for step, below in node.steps.items())


def following(nodes: Nodes, step: object) -> Nodes:
    """Return where paths come to by one step more."""
    return tuple(_following(nodes, step))


def go_below(nodes: Nodes) -> bool:
    """Whether paths name something inside of the value here; it may be a text that is JSON, also one without a quote: ``[4111]``."""
    return any(node.steps for node in nodes)


def _following(nodes: Nodes, step: object) -> Iterable[PathNode]:
    for node in nodes:
        steps = node.steps
        if steps:
            if isinstance(step, str | int) and (named := steps.get(step)) is not None:
                yield named
            if (anything := steps.get(None)) is not None:
                yield anything


def _ends(nodes: Nodes) -> bool:
    return any(node.is_end for node in nodes)


def _free_name(name: Any, taken: Mapping[Any, Any]) -> Any:  # noqa: ANN401 (any key)
    """Return a name that is not taken: two redacted names may have become one."""
    free, count = name, 2
    while free in taken:
        free, count = f"{name} ({count})", count + 1
    return free
