"""Layers of a configuration: file < profile < environment < flags. Each becomes a flat table of dotted keys.

Nested and dotted keys are the same thing, so a layer is flattened first; a key that is set twice in one layer, in whatever
form, is a problem. Between layers the later one wins, key by key; a section of which one kind is chosen (`source`) is replaced
when the later layer chooses another kind, and ``null`` takes a section back to its defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Variables
from collections.abc import Sequence

import msgspec

from agentflow.cli.keys import PROFILES, KeyTable, Path, Section, variable_of
from agentflow.cli.values import describe_command
from agentflow.plan.agent_specs import DOCUMENT_KEYS
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.problems import nearest
from agentflow.plan.yaml_source import Mapping, Scalar, Value, loose_scalar, read_yaml

PROFILE_VARIABLE = "AGENTFLOW_PROFILE"
_FOREIGN = re.compile(
    # The test suite's own; and what Kubernetes puts into every container for a service that is called agentflow….
    r"AGENTFLOW_(TEST_\w+|(\w+_)?SERVICE_(HOST|PORT(_\w+)?)|(\w+_)?PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_DEPTH_MAX = 32


class Entry(msgspec.Struct, frozen=True):
    """One key as it was set.

    Attributes:
        key: Where the key stands.
        value: Its value; None: the section is there and empty (``stdin: {}``), or taken back (`is_reset`).
        is_reset: ``null`` for a section.
        is_literal: References in it are not followed.
    """

    key: Place
    value: Value | None
    is_reset: bool = False
    is_literal: bool = False


Layer = dict[Path, Entry]


class Flattener:
    """Flattens mappings against the key table.

    Args:
        table: The known keys.
        problems: Takes what is wrong.
        is_literal: The entries' texts are taken as they are, without references.
    """

    def __init__(self, table: KeyTable, problems: ProblemList, *, is_literal: bool = False) -> None:
        self._table = table
        self._problems = problems
        self._is_literal = is_literal

    def flatten(self, mapping: Mapping) -> Layer:
        """Return one layer; what is unknown, set twice or of the wrong shape becomes a problem."""
        layer: Layer = {}
        self._add_mapping(layer, (), mapping)
        return layer

    def _add_mapping(self, layer: Layer, path: Path, mapping: Mapping) -> None:
        written: dict[str, Place] = {}
        for name, place, value in mapping.entries:
            parts = tuple(name.split("."))
            if name in written:
                self._set_twice((*path, *parts), place, written[name])
                continue
            written[name] = place
            found = self._resolve(path, parts, name, place)
            if found is not None:
                self._add(layer, found, place, value)

    def _resolve(self, path: Path, parts: Path, written: str, place: Place) -> Path | None:
        """Return the path of a key; None, and a problem, when there is none of that name."""
        for index, part in enumerate(parts):
            section = self._table.sections.get(path)
            if self._table.free_section(path) or self._table.open_section(path) is not None:
                if not part:
                    self._problems.add(f"key '{'.'.join(parts)}' has an empty part", place)
                    return None
            elif section is None:
                self._problems.add(
                    f"unknown key '{'.'.join((*path, *parts[index:]))}'",
                    place,
                    note=f"'{'.'.join(path)}' is one value, nothing is below it",
                    help=describe_command(path),
                )
                return None
            elif part not in section.children and (kind := self._only_kind_with(section, part)) is not None:
                path = (*path, kind)
            elif part not in section.children:
                name = ".".join((*path, *parts[index:]))
                before = written.split(".")[:index]
                note = unknown_note(self._table, section, part, before)
                self._problems.add(f"unknown key '{name}'", place, note=note, help=describe_command(path))
                return None
            path = (*path, part)
        return path

    def _only_kind_with(self, section: Section, part: str) -> str | None:
        """Return the kind that ``part`` belongs to, for `dead-letter.topic`: where one kind only has such a key."""
        kinds = [kind for kind in section.children if (*section.path, kind, part) in self._table.keys]
        return kinds[0] if section.is_choice and len(kinds) == 1 else None

    def _add(self, layer: Layer, path: Path, place: Place, value: Value) -> None:
        section = self._table.sections.get(path)
        if self._table.free_section(path):
            self._add_free(layer, path, place, value)
        elif section is None and self._table.find(path) is None:
            self._add_named(layer, path, place, value)
        elif section is None:
            self._put(layer, path, Entry(place, value, is_literal=self._is_literal))
        elif isinstance(value, Mapping):
            if not value.entries:
                self._put(layer, path, Entry(place, None))
            self._add_mapping(layer, path, value)
        elif isinstance(value, Scalar) and value.value is None:
            is_kind = section.struct is not None and not section.leaves  # `stdin:` with nothing behind it chooses stdin
            self._put(layer, path, Entry(place, None, is_reset=not is_kind))
        elif section.is_choice and isinstance(value, Scalar) and value.text in section.children:
            self._put(layer, (*path, value.text), Entry(value.place, None))  # `source: stdin`
        else:
            keys = ", ".join(section.children)
            kind = "one of" if section.is_choice else "keys"
            self._problems.add(
                f"'{'.'.join(path)}' is a section, not a value",
                value.place,
                note=f"{kind}: {keys}",
                help=describe_command(path),
            )

    def _add_free(self, layer: Layer, path: Path, place: Place, value: Value) -> None:
        section = self._table.sections[self._table.free_section(path) or path]
        name = ".".join(section.path)
        if len(path) > _DEPTH_MAX:
            self._problems.add(f"'{name}' is nested more than {_DEPTH_MAX} deep", place)
        elif isinstance(value, Mapping):
            self._add_mapping(layer, path, value)
        elif path != section.path:
            self._put(layer, path, Entry(place, value, is_literal=self._is_literal))
        elif isinstance(value, Scalar) and value.value is None:
            self._put(layer, path, Entry(place, None, is_reset=True))
        else:
            self._problems.add(
                f"'{name}' is a section, not a value",
                value.place,
                note=section.description.partition(":")[0].lower().rstrip("."),
            )

    def _add_named(self, layer: Layer, path: Path, place: Place, value: Value) -> None:
        """Add what stands below a name of an open section."""
        if isinstance(value, Mapping) and value.entries:
            self._add_mapping(layer, path, value)
            return
        section = self._table.open_section(path)
        assert section is not None, "a path that is no key and no section is below an open section"
        is_named = len(path) > len(section.path) + 1
        near = nearest(path[-1].replace("_", "-"), section.leaves) if is_named else None
        meant = ".".join([*path[:-1], near] if near else [*path, next(iter(section.leaves))])
        self._problems.add(
            f"unknown key '{'.'.join(path)}'",
            place,
            note=f"did you mean '{meant}'?",
            help=describe_command(section.path),
        )

    def _put(self, layer: Layer, path: Path, entry: Entry) -> None:
        earlier = layer.get(path)
        if earlier is not None and (entry.value is not None or entry.is_reset):
            self._set_twice(path, entry.key, earlier.key)
            return
        if self._table.free_section(path):
            for other, set_there in layer.items():
                if (
                    other != path
                    and self._table.free_section(other)
                    and (_is_below(path, other) or _is_below(other, path))
                ):
                    self._problems.add(
                        f"key '{'.'.join(path)}' collides with '{'.'.join(other)}'",
                        entry.key,
                        note="a key is either a value or a section",
                        related=set_there.key,
                    )
        layer[path] = entry

    def _set_twice(self, path: Path, place: Place, earlier: Place) -> None:
        first = f", first in line {earlier.line}" if earlier.line else ""
        related = earlier if earlier.line != place.line else None
        self._problems.add(
            f"key '{'.'.join(path)}' is set twice{first}", place, note="remove one of them", related=related
        )


def _is_below(path: Path, section: Path) -> bool:
    return len(path) > len(section) and path[: len(section)] == section


def unknown_note(table: KeyTable, section: Section, part: str, before: Sequence[str]) -> str:
    """Say which key was perhaps meant; ``before`` are the parts that were written before it."""
    kinds = [kind for kind in section.children if section.is_choice and (*section.path, kind, part) in table.keys]
    if kinds:
        return f"say of which kind, such as {'.'.join([*before, kinds[0], part])} ({', '.join(kinds)} have it)"
    candidates = [*section.children, *([PROFILES, *DOCUMENT_KEYS] if not section.path else [])]
    near = nearest(part.replace("_", "-"), candidates) or nearest(part, candidates)
    if near is not None:
        return f"did you mean '{'.'.join([*before, near])}'?"
    elsewhere = sorted(".".join(path) for path in [*table.keys, *table.sections] if path and path[-1] == part)
    if len(elsewhere) == 1:
        depth = "" if "." in elsewhere[0] else ", at the top level of the file"
        return f"did you mean '{elsewhere[0]}'{depth}?"
    if len(elsewhere) == 2:
        return f"did you mean '{elsewhere[0]}' or '{elsewhere[1]}'?"
    return f"known here: {', '.join(section.children)}" if section.children else "it has no keys"


def overlay(lower: Layer, upper: Layer, table: KeyTable) -> Layer:
    """Return ``upper`` laid over ``lower``."""
    result = dict(lower)
    for path, entry in upper.items():
        section = table.sections.get(path[:1])
        for other in list(result):
            is_other_kind = (
                section is not None and section.is_choice and other[:1] == path[:1] and other[:2] != path[:2]
            )
            if (
                (entry.is_reset and other[: len(path)] == path)
                or is_other_kind
                or (table.free_section(path) and (_is_below(other, path) or _is_below(path, other)))
                or (result[other].is_reset and _is_below(path, other))
            ):
                del result[other]
        if entry.value is not None or entry.is_reset or path not in result:
            result[path] = entry
    return result


def environment_layer(variables: Variables[str, str], lower: Layer, table: KeyTable, problems: ProblemList) -> Layer:
    """Return what ``AGENTFLOW_…`` variables set.

    A key with a free name (of a free section, or of an open one) can be set when a file or profile has it, or agentflow knows the name.
    """
    keys: dict[str, Path] = {key.variable: path for path, key in table.keys.items()}
    keys |= {variable_of(".".join(path)): path for path, section in table.sections.items() if section.is_choice}
    keys |= {variable_of(".".join(path)): path for path in lower if table.free_section(path) not in (None, path)}
    for section in table.open_sections:
        named = [(*section.path, name, leaf) for name in section.known for leaf in section.leaves]
        named += [path for path in lower if table.open_section(path) is section and path != section.path]
        keys |= {variable_of(".".join(path)): path for path in named}
    flattener = Flattener(table, problems, is_literal=True)
    layer: Layer = {}
    for name in sorted(variables):
        if not name.startswith("AGENTFLOW_") or name == PROFILE_VARIABLE:
            continue
        if name not in keys:
            if not _FOREIGN.fullmatch(name):
                near = nearest(name, keys)
                problems.add(
                    f"the variable {name} names no key",
                    Place("environment"),
                    note=f"did you mean {near}?" if near else "AGENTFLOW_ variables set keys of the job file",
                    help="agentflow schema --describe",
                )
            continue
        text = variables[name]
        shown = Place("environment", 0, len(name) + 1, max(1, len(text)), f"{name}={text}")
        value = _value_of(text, shown, problems)
        if value is not None:
            mapping = Mapping([(".".join(keys[name]), shown, value)], shown)
            layer = overlay(layer, flattener.flatten(mapping), table)
    return layer


def flag_layer(settings: Sequence[str], table: KeyTable, problems: ProblemList) -> Layer:
    """Return what ``--set key=value`` flags set; a later flag wins over an earlier one."""
    flattener = Flattener(table, problems)
    layer: Layer = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        key_place = Place("--set", 0, 0, max(1, len(name)), setting)
        if not equals or not name:
            problems.add(f"'{setting}' is not key=value", Place("--set"), note="such as --set checkpoint.interval=5s")
            continue
        if name.split(".")[0] == PROFILES:
            problems.add("a profile is chosen, not set", key_place, note="--profile NAME")
            continue
        place = Place("--set", 0, len(setting) - len(text), max(1, len(text)), setting)
        value = _value_of(text, place, problems)
        if value is not None:
            layer = overlay(layer, flattener.flatten(Mapping([(name, key_place, value)], place)), table)
    return layer


def _value_of(text: str, place: Place, problems: ProblemList) -> Value | None:
    """Return the value of a variable or flag: text, or YAML where it starts as a list, a mapping or in quotes."""
    if not text.lstrip().startswith(("[", "{", '"', "'")):
        return loose_scalar(text, place)

    def at(line: int, column: int, width: int) -> Place:
        del line  # a flag has one line
        return Place(place.source, 0, place.column + column, width, place.text)

    return read_yaml(text, place.source, problems, at)
