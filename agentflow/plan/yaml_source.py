"""YAML with places: every key and value knows its line and column. The types of the safe loader, and no tags."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import yaml

from agentflow.plan.file_problems import Place, ProblemList

NODES_MAX = 100_000  # with what aliases repeat: a file of a few lines can expand to any size
DEPTH_MAX = 64
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may be built without libyaml


class Scalar(msgspec.Struct):
    """One value.

    Attributes:
        value: None, bool, int, float or str, as YAML reads it.
        text: As it is written, without quotes.
        place: Where.
        is_loose: It comes from a variable, a flag or a reference, where everything is text: the key decides what it is.
        is_plain: Written without quotes.
    """

    value: Any
    text: str
    place: Place
    is_loose: bool = False
    is_plain: bool = True


class Items(msgspec.Struct):
    """A list."""

    items: list[Value]
    place: Place


class Mapping(msgspec.Struct):
    """Keys and values in order; a key may be there twice."""

    entries: list[tuple[str, Place, Value]]
    place: Place


Value = Scalar | Items | Mapping


def plain_scalar(text: str) -> Any:  # noqa: ANN401 (whatever YAML says)
    """Return what ``text`` is as an unquoted YAML value: None, bool, int, float or str."""
    tag: str = _resolver().resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # its stubs have no types
    return _construct(yaml.ScalarNode(tag, text))


def loose_scalar(text: str, place: Place) -> Scalar:
    """Return the value of a variable or a flag."""
    return Scalar(plain_scalar(text), text, place, is_loose=True)


def read_yaml(
    text: str, source: str, problems: ProblemList, at: Callable[[int, int, int], Place] | None = None
) -> Value | None:
    """Read one document.

    Args:
        text: The document.
        source: Its name for messages.
        problems: Takes what is wrong.
        at: Makes a place of (line from 0, column, width); default: a place in the file ``source``.

    Returns:
        None for an empty document, or one that cannot be read.
    """
    lines = text.splitlines()
    if at is None:

        def at(line: int, column: int, width: int) -> Place:
            return Place(source, line + 1, column, width, lines[line] if line < len(lines) else "")

    try:
        deep = _too_deep(text)
        if deep is not None:
            problems.add(f"this is nested more than {DEPTH_MAX} deep", at(deep.line, deep.column, 1))
            return None
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Reader(lines, problems, at).read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"this is not YAML: {error.problem or error.context}"
        if mark is None:
            problems.add(what, Place(source))
        else:
            # libyaml marks the end of a file behind its last line.
            line = min(mark.line, max(len(lines) - 1, 0))
            column = mark.column if line == mark.line else len(lines[line])
            problems.add(what, at(line, column, 1), note=_syntax_note(error, lines[line] if lines else ""))
    except yaml.YAMLError as error:
        problems.add(f"this is not YAML: {' '.join(str(error).split())}", Place(source))
    return None


def _too_deep(text: str) -> Any:  # noqa: ANN401 (a mark; libyaml has a class of its own)
    """Return where the nesting is too deep. Composing recurses, in C: without this a small file ends the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                return event.start_mark
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None


def _syntax_note(error: yaml.MarkedYAMLError, line: str) -> str:
    if "\\t" in str(error.problem) or line.lstrip(" ").startswith("\t"):
        return "indent with spaces, not tabs"
    if "${" in line:
        return 'inside { } and [ ] a reference stands in quotes: "${env:NAME}"'
    if "end of stream" in str(error.problem):
        return "a quote is not closed"
    if "mapping values" in str(error.problem):
        return "put a text that contains ': ' in quotes"
    return ""


@functools.cache
def _resolver() -> yaml.resolver.Resolver:
    return yaml.resolver.Resolver()


@functools.cache
def _constructor() -> yaml.constructor.SafeConstructor:
    return yaml.constructor.SafeConstructor()


def _construct(node: yaml.ScalarNode) -> Any:  # noqa: ANN401 (whatever YAML says)
    kind = node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return _constructor().construct_yaml_bool(node)
    if kind == "int":
        return _constructor().construct_yaml_int(node)
    if kind == "float":
        return _constructor().construct_yaml_float(node)
    return node.value  # a date stays what was written


_KNOWN_TAGS = {_TAG + kind for kind in ("null", "bool", "int", "float", "str", "timestamp", "value", "merge")}


class _Reader:
    """Turns composed nodes into values; aliases are followed, with a limit."""

    def __init__(self, lines: list[str], problems: ProblemList, at: Callable[[int, int, int], Place]) -> None:
        self._lines = lines
        self._problems = problems
        self._at = at
        self._open: set[int] = set()  # nodes being read: an alias to one of them has no end
        self._count = 0

    def read(self, node: yaml.Node) -> Value:
        place = self._place(node)
        self._count += 1
        if id(node) in self._open or self._count > NODES_MAX:
            what = "this alias refers to itself" if id(node) in self._open else f"more than {NODES_MAX:,} values"
            self._problems.add(what, place)
            return Scalar(None, "", place)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        self._open.add(id(node))
        try:
            if node.tag not in {f"{_TAG}map", f"{_TAG}seq"}:
                self._problems.add(f"the tag {_tag_name(node)} is not supported", place, note="remove the tag")
            if isinstance(node, yaml.SequenceNode):
                return Items([self.read(item) for item in node.value], place)
            assert isinstance(node, yaml.MappingNode), "a node is a scalar, a sequence or a mapping"
            return Mapping(list(self._entries(node)), place)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Scalar:
        is_plain = not node.style  # libyaml says "", the Python parser None
        if node.tag not in _KNOWN_TAGS:
            self._problems.add(f"the tag {_tag_name(node)} is not supported", place, note="remove the tag")
            return Scalar(None, node.value, place)
        try:
            value = _construct(node)
        except (ValueError, KeyError):  # `!!int soon`
            self._problems.add(f"{node.value!r} is no {node.tag.removeprefix(_TAG)}", place, note="remove the tag")
            return Scalar(None, node.value, place)
        return Scalar(value, node.value, place, is_plain=is_plain)

    def _entries(self, node: yaml.MappingNode) -> Iterator[tuple[str, Place, Value]]:
        own = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
        for key, value in node.value:
            place = self._place(key)
            if key.tag == _MERGE:
                for name, merged_place, merged in self._merged(value):
                    if name not in own:
                        own.add(name)
                        yield name, merged_place, merged
            elif not isinstance(key, yaml.ScalarNode) or key.tag not in {f"{_TAG}str", f"{_TAG}value"}:
                written = key.value if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                self._problems.add(f"a key is a text, not {written}", place, note="put it in quotes")
            else:
                yield key.value, place, self.read(value)

    def _merged(self, node: yaml.Node) -> Iterator[tuple[str, Place, Value]]:
        """Yield what ``<<:`` brings in; the first of several mappings wins."""
        merged = self.read(node)
        for mapping in merged.items if isinstance(merged, Items) else [merged]:
            if isinstance(mapping, Mapping):
                yield from mapping.entries
            else:
                self._problems.add("'<<' merges a mapping, or a list of mappings", mapping.place)

    def _place(self, node: yaml.Node) -> Place:
        start, end = node.start_mark, node.end_mark
        if start.line == end.line:
            return self._at(start.line, start.column, max(1, end.column - start.column))
        length = len(self._lines[start.line]) if start.line < len(self._lines) else start.column + 1
        return self._at(start.line, start.column, max(1, length - start.column))


def _tag_name(node: yaml.Node) -> str:
    tag = str(node.tag)
    return f"'!!{tag.removeprefix(_TAG)}'" if tag.startswith(_TAG) else f"'{tag}'"
