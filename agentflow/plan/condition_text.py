"""The text of a CEL condition: limits, names, and which attributes it reads; no CEL library is needed for this.

A condition is cut into tokens, never parsed: the library is the only parser, and it sees the author's text first. What
is derived here only has to be right for text that the library accepts:

- **Depth** is the number of ``(``, ``[`` and ``{`` that are open at the same place, function calls included, strings and
  comments excluded.
- **Bare names**: ``stars < 3`` means ``attributes.stars < 3`` and is rewritten to it, so that a missing attribute is the
  same thing in both spellings. Not rewritten: ``type`` and ``attributes``, names of functions, variables of
  ``exists``/``all``/``filter``/``map``, CEL's type names (``int``, ``string``, …) and literals. An attribute of such a name
  is written ``attributes.type``. ``id`` is refused: an event's id is computed only when somebody looks, which a condition
  on every event would always do; an attribute of that name is ``attributes.id``.
- **EventType.X** becomes the name it stands for, so a wrong constant is a problem of the plan and no missing attribute.
- **What it reads** (`ConditionText.reads`): the paths behind ``attributes``. The library converts all values it is given, at
  about 1 µs each; a condition that reads one field of a large input must not pay for the others.
- **The one type** (`ConditionText.only_type`): a condition ``type == 'scored' && …`` without ``||`` or ``?`` outside of brackets
  is false for every other type, whatever the rest says (false && error is false in CEL), so it is not evaluated at all.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from agentflow.api.events import EventType
from agentflow.plan.problems import nearest

LENGTH_MAX = 8192
"""Characters of one condition."""
DEPTH_MAX = 32
"""Brackets open at the same place."""

EVENT_TYPES: dict[str, str] = {name: value for name, value in vars(EventType).items() if not name.startswith("_")}
"""Constant → type name, for every constant of `EventType`."""

Paths = dict[str, "Paths | None"]
"""A tree of attribute names; None below a name: the whole value."""

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|//[^\n]*)
    | (?P<string>[bB]?[rR](?:'{3}.*?'{3}|"{3}.*?"{3}|'[^'\n]*'|"[^"\n]*")
               | [bB]?(?:'{3}(?:\\.|(?!'{3}).)*'{3}|"{3}(?:\\.|(?!"{3}).)*"{3}|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))
    | (?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_OPENING = frozenset("([{")
_CLOSING = frozenset(")]}")
_LITERALS = frozenset({"true", "false", "null", "in"})
_CEL_TYPES = frozenset({"bool", "bytes", "double", "dyn", "int", "list", "map", "null_type", "string", "uint"})
_MACROS = frozenset({"all", "exists", "existsOne", "exists_one", "filter", "map"})
_ROOTS = frozenset({"type", "attributes", "EventType"})
_PLAIN_STRING = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")


class ConditionText(msgspec.Struct, frozen=True):
    """What is known of a condition before it is compiled.

    Attributes:
        program: The text to compile: bare names and constants resolved.
        reads: Attributes it reads; None: all of them. Empty: none, the event need not be decoded.
        only_type: The one event type it can be true for; None: any.
    """

    program: str
    reads: Paths | None
    only_type: str | None


class _Token(msgspec.Struct):
    kind: str
    text: str
    depth: int  # brackets open around it; a bracket itself counts as outside
    before: str  # space and comments between the last token and this one


class ConditionTextError(ValueError):
    """A condition that cannot be used; the text says what and how to fix it."""


def check_limits(source: str) -> None:
    """Refuse what is too long or too deep, before any parser sees it.

    Raises:
        ConditionTextError: Above `LENGTH_MAX` or `DEPTH_MAX`.
    """
    if len(source) > LENGTH_MAX:
        raise ConditionTextError(f"it has {len(source):,} characters; at most {LENGTH_MAX:,} are allowed")
    deepest = max((token.depth + (token.text in _OPENING) for token in _tokens(source)), default=0)
    if deepest > DEPTH_MAX:
        raise ConditionTextError(f"its brackets are nested {deepest} deep; at most {DEPTH_MAX} levels are allowed")


def read_condition(source: str) -> ConditionText:
    """Resolve the names of a condition that the CEL library accepts.

    Raises:
        ConditionTextError: It uses a name that a condition cannot have.
    """
    tokens = _tokens(source)
    reader = _Reader(tokens)
    reader.resolve()
    program = "".join(token.before + token.text for token in tokens)
    return ConditionText(program, reader.reads, _only_type(tokens))


def pick(attributes: dict[str, Any], reads: Paths | None) -> dict[str, Any]:
    """Return the part of ``attributes`` that a condition reads."""
    if reads is None:
        return attributes
    picked = {}
    for name, below in reads.items():
        if name in attributes:
            value = attributes[name]
            picked[name] = pick(value, below) if below is not None and type(value) is dict else value
    return picked


def _tokens(source: str) -> list[_Token]:
    tokens: list[_Token] = []
    depth = 0
    before = ""
    for match in _TOKEN.finditer(source):
        kind, text = match.lastgroup or "other", match[0]
        if kind == "space":
            before += text
            continue
        if text in _CLOSING:
            depth = max(depth - 1, 0)
        tokens.append(_Token(kind, text, depth, before))
        before = ""
        if text in _OPENING:
            depth += 1
    return tokens


class _Reader:
    """Walks over the tokens once, rewrites names in place and collects what is read."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._variables: list[tuple[int, str]] = []  # (depth inside the macro's parentheses, name)
        self.reads: Paths | None = {}

    def resolve(self) -> None:
        for place, token in enumerate(self._tokens):
            if token.text in _CLOSING and token.kind == "sign":
                while self._variables and self._variables[-1][0] > token.depth:
                    self._variables.pop()
            elif token.kind == "name":
                if self._is_member(place):
                    self._open_macro(place)
                else:
                    self._resolve_name(place, token)

    def _text(self, place: int) -> str:
        token = self._tokens[place] if 0 <= place < len(self._tokens) else None
        return token.text if token is not None and token.kind in {"sign", "name"} else ""

    def _is_member(self, place: int) -> bool:
        """Whether the name stands behind a dot."""
        if self._text(place - 1) != ".":
            return False
        before = self._tokens[place - 2] if place >= 2 else None
        if before is None or (before.kind == "sign" and before.text not in _CLOSING) or before.text == "in":
            raise ConditionTextError(f"'.{self._tokens[place].text}': a name cannot start with a dot")
        return True

    def _open_macro(self, place: int) -> None:
        variable = place + 2
        if self._tokens[place].text not in _MACROS or self._text(place + 1) != "(" or self._text(place + 3) != ",":
            return
        name = self._tokens[variable].text
        if name in _ROOTS:
            raise ConditionTextError(
                f"'{name}' cannot be the variable of '{self._tokens[place].text}'; choose another name"
            )
        self._variables.append((self._tokens[variable].depth, name))

    def _resolve_name(self, place: int, token: _Token) -> None:
        name = token.text
        is_variable = any(name == variable for _, variable in self._variables)
        if is_variable or name in _LITERALS or name in _CEL_TYPES or name == "type" or self._text(place + 1) == "(":
            return
        if name == "EventType":
            self._resolve_constant(place, token)
        elif name == "id":
            raise ConditionTextError(
                "'id' is not available in a condition; an attribute of that name is 'attributes.id'"
            )
        elif name == "attributes":
            self._read(self._path(place))
        else:
            token.text = f"attributes.{name}"
            self._read([name, *self._path(place)])

    def _resolve_constant(self, place: int, token: _Token) -> None:
        constant = self._text(place + 2) if self._text(place + 1) == "." else ""
        if constant not in EVENT_TYPES:
            near = nearest(constant, EVENT_TYPES) or next(iter(EVENT_TYPES))
            written = f"EventType.{constant}" if constant else "EventType"
            raise ConditionTextError(f"'{written}' is not an event type; did you mean 'EventType.{near}'?")
        token.kind, token.text = "string", f"'{EVENT_TYPES[constant]}'"
        for consumed in self._tokens[place + 1 : place + 3]:
            consumed.kind, consumed.text, consumed.before = "space", "", ""

    def _path(self, place: int) -> list[str]:
        """Return the names behind the name at ``place``: ``.a.b``; a method's name is not part of it."""
        path = []
        while self._text(place + 1) == "." and self._text(place + 3) != "(":
            path.append(self._tokens[place + 2].text)
            place += 2
        return path

    def _read(self, path: list[str]) -> None:
        if not path:
            self.reads = None
        at = self.reads
        for place, name in enumerate(path):
            if at is None:  # everything from here on is read already
                return
            if place == len(path) - 1:
                at[name] = None
            else:
                at = at.setdefault(name, {})


def _only_type(tokens: list[_Token]) -> str | None:
    """Return the type of a leading ``type == '…'`` that is and-ed with all the rest."""
    real = [token for token in tokens if token.text]
    if any(token.depth == 0 and token.kind == "sign" and token.text in {"||", "?"} for token in real):
        return None
    if len(real) < 3 or real[1].text != "==" or (len(real) > 3 and real[3].text != "&&"):
        return None
    left, right = real[0], real[2]
    if left.kind == "string":
        left, right = right, left
    literal = _PLAIN_STRING.fullmatch(right.text) if right.kind == "string" else None
    if left.text != "type" or left.kind != "name" or literal is None:
        return None
    return literal[1] if literal[1] is not None else literal[2]
