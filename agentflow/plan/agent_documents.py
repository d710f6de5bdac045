"""Reading a YAML document of agents: from values with places to entries, or all problems at once. Nothing that it names is opened or imported."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec.structs import FieldInfo

from agentflow.api.references import REFERENCE
from agentflow.plan.agent_specs import (
    CLASS_KEYS,
    DOCUMENT_KEYS,
    SECTIONS,
    AgentSpec,
    InlinePromptSpec,
    InlineSetupSpec,
)
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.problems import nearest
from agentflow.plan.reference_forms import form_problem
from agentflow.plan.yaml_source import Items, Mapping, Scalar, Value, read_yaml

SCHEMA_COMMAND: Final = "agentflow schema"
_REFERENCE = re.compile(r"(?<!\$)\$\{(env|file):")
_REFERENCE_NOTE = "references are for arguments of resources, and for the job's own  config:"
_WRONG_KIND = re.compile(r"Expected `(.*)`, got `(\w+)`")
_WRONG_TEXT = re.compile(r"Expected `str` matching regex (.*)")
_OUT_OF_RANGE = re.compile(r"Expected `(?:int|float)` ([<>]=) ([\d.]+)")
_KINDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


class NameOf(msgspec.Struct, frozen=True):
    """An entry that is shared, by its name."""

    name: str
    place: Place


class Entry(msgspec.Struct, frozen=True):
    """One entry, checked by itself.

    Attributes:
        section: Which list it belongs to.
        name: Its name; of an entry with a function and without a name: that of the function. Empty: it stands in another entry.
        label: What it is called in messages: ``tool 'find_orders'``.
        spec: What it says; an instance of the section's spec.
        place: Where it begins.
        places: Where its values stand, by key; those of a list also by ``key[0]``.
        keys: Where its keys stand.
        arguments: Of its class: all keys but ``name`` and ``class``.
        entries: Of an agent: its lists.
    """

    section: str
    name: str
    label: str
    spec: Any
    place: Place
    places: dict[str, Place]
    keys: dict[str, Place]
    arguments: dict[str, Any] = {}
    entries: dict[str, list[Entry | NameOf]] = {}

    def at(self, *keys: str) -> Place:
        """Return where the first of ``keys`` that is there stands; else where the entry begins."""
        return next((self.places[key] for key in keys if key in self.places), self.place)


class AgentDocument(msgspec.Struct, frozen=True):
    """A document, read.

    Attributes:
        path: As it was given; what it refers to is relative to it.
        agents: Its agents.
        shared: Entries for all agents, by list.
        has_agents: The key ``agents`` is there; a problem may keep what is below it from being an agent.
    """

    path: str
    agents: list[Entry]
    shared: dict[str, list[Entry]]
    has_agents: bool = False

    @property
    def folder(self) -> Path:
        """Where the document is."""
        return Path(self.path).parent


def read_document_file(path: str, problems: ProblemList, other_keys: Collection[str]) -> AgentDocument | None:
    """Read the file of a document.

    Args:
        path: The file, as it is named in messages.
        problems: Takes what is wrong.
        other_keys: Keys at its top that are not for agents (those of a job), and are passed over.

    Returns:
        None, and a problem, where it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problems.add(f"the file cannot be read: {reason.lower()}", Place(path))
        return None
    count = len(problems.found)
    root = read_yaml(text, path, problems)
    if len(problems.found) > count:
        return None
    if not isinstance(root, Mapping):
        place = Place(path) if root is None else root.place
        problems.add("a document of agents is a mapping of keys", place, note="such as  agents:", help=SCHEMA_COMMAND)
        return None
    return read_document(root, path, problems, other_keys)


def read_document(root: Mapping, path: str, problems: ProblemList, other_keys: Collection[str] = ()) -> AgentDocument:
    """Read a document; see `read_document_file`."""
    return _Reader(problems).document(root, path, other_keys)


class _Reader:
    """Reads lists of entries, entries, and values of their keys."""

    def __init__(self, problems: ProblemList) -> None:
        self._problems = problems

    def document(self, root: Mapping, path: str, other_keys: Collection[str]) -> AgentDocument:
        agents: list[Entry] = []
        shared: dict[str, list[Entry]] = {}
        for name, place, value in self._once(root, "the document"):
            if name == "agents":
                agents += [entry for entry in self._entries(name, value) if isinstance(entry, Entry)]
            elif name in SECTIONS:
                shared[name] = [entry for entry in self._entries(name, value) if isinstance(entry, Entry)]
            elif name.partition(".")[0] not in other_keys:
                self._unknown(name, place, "the document", [*DOCUMENT_KEYS, *other_keys])
        self._check_names([agents, *shared.values()])
        return AgentDocument(path, agents, shared, any(name == "agents" for name, _, _ in root.entries))

    def _entries(self, section: str, value: Value, *, may_be_names: bool = False) -> Iterator[Entry | NameOf]:
        """Yield the entries of a list; with ``may_be_names`` also those that are the name of a shared one."""
        noun = _noun(section)
        if isinstance(value, Scalar) and value.value is None:
            return
        if not isinstance(value, Items):
            self._problems.add(f"'{section}' is a list of {noun} entries", value.place, note="each begins with '- '")
            return
        for item in value.items:
            if isinstance(item, Mapping):
                entry = self._entry(section, item)
                if entry is not None:
                    yield entry
            elif may_be_names and isinstance(item, Scalar) and isinstance(item.value, str):
                yield NameOf(item.value, item.place)
            else:
                names = ", or the name of a shared one" if may_be_names else ""
                self._problems.add(f"an entry of '{section}' is a mapping of keys{names}", item.place)

    def _entry(self, section: str, mapping: Mapping) -> Entry | None:
        spec = AgentSpec if section == "agents" else SECTIONS[section].spec
        return self._read(section, spec, mapping)

    def _read(self, section: str, spec: type[msgspec.Struct], mapping: Mapping, label: str = "") -> Entry | None:
        """Return what a mapping says; None, and problems, when a value is wrong or missing."""
        count = len(self._problems.found)
        label = label or _label(section, mapping)
        fields = {field.encode_name: field for field in msgspec.structs.fields(spec)}
        is_open = not spec.__struct_config__.forbid_unknown_fields
        values: dict[str, Any] = {}
        places: dict[str, Place] = {}
        keys: dict[str, Place] = {}
        arguments: dict[str, Any] = {}
        entries: dict[str, list[Entry | NameOf]] = {}
        meant: set[str | None] = set()
        for name, place, value in self._once(mapping, label):
            key = _key(name, fields, places)
            if key in places:
                self._problems.add(f"{label} has both '{key}' and '{name}'", place, note="they mean the same")
                continue
            places[key], keys[key] = value.place, place
            if isinstance(value, Items):
                places |= {f"{key}[{index}]": item.place for index, item in enumerate(value.items)}
            is_argument = is_open and key not in ("name", "class")
            if section == "agents" and key in SECTIONS:
                entries[key] = list(self._entries(key, value, may_be_names=True))
            elif section == "agents" and key in _INLINE and isinstance(value, Mapping):
                entries[key] = [one for one in [self._read(*_INLINE[key], value)] if one is not None]
            elif key in fields:
                values[fields[key].name] = self._value(fields[key], label, value, is_argument=is_argument)
            elif not is_open:
                meant.add(self._unknown(name, place, label, list(fields)))
            if is_argument:
                self._check_references(value, label)
                arguments[key] = self._plain(value)
        for key, field in fields.items():
            if field.required and key not in places and key not in meant:
                self._problems.add(f"{label} has no '{key}'", mapping.place, note=f"such as  {key}: {_example(key)}")
        if section == "agents":
            self._check_names(entries.values())
        if len(self._problems.found) > count:
            return None
        made = spec(**values)
        name = getattr(made, "name", None) or _function_name(getattr(made, "function", ""))
        if name:
            label = f"{_noun(section)} '{name}'"
        return Entry(section, name, label, made, mapping.place, places, keys, arguments, entries)

    def _once(self, mapping: Mapping, label: str) -> Iterator[tuple[str, Place, Value]]:
        """Yield the keys of a mapping; one that is there again is a problem."""
        seen: dict[str, Place] = {}
        for name, place, value in mapping.entries:
            if name in seen:
                related = seen[name] if seen[name].line != place.line else None
                what = f"{label}: '{name}' is set twice, first in line {seen[name].line}"
                self._problems.add(what, place, note="remove one of them", related=related)
                continue
            seen[name] = place
            yield name, place, value

    def _value(self, field: FieldInfo, label: str, value: Value, *, is_argument: bool) -> Any:  # noqa: ANN401 (any field)
        """Return the value of a key as its field holds it; anything, and a problem, when it is wrong."""
        key = field.encode_name
        if not is_argument and field.name not in ("text", "messages"):  # a prompt may speak of them
            for scalar in _scalars(value):
                if isinstance(scalar.value, str) and _REFERENCE.search(scalar.text):
                    what = f"{label}: '{key}' has a reference, which nothing resolves"
                    self._problems.add(what, scalar.place, note=_REFERENCE_NOTE)
        if key == "type" and isinstance(value, Scalar) and value.text == "java":
            what = f"{label}: agentflow runs Python, not Java"
            self._problems.add(what, value.place, note="write the function in Python, and  type: python")
            return None
        return self._converted(field.type, value, label, key)

    def _converted(self, hint: Any, value: Value, label: str, key: str) -> Any:  # noqa: ANN401 (a type hint; any value)
        """Return a value as a type has it; where the type holds structs, every problem inside them is told."""
        of_struct, of_list, of_mapping = (_struct_in(hint, kind) for kind in (None, list, dict))
        if of_struct is not None and isinstance(value, Mapping):
            return self._inner(of_struct, value, f"{label}: {key}")
        if of_list is not None and isinstance(value, Items):
            return [
                self._inner(of_list, item, f"{label}: {key}[{index}]")
                if isinstance(item, Mapping)
                else self._converted(of_list, item, label, f"{key}[{index}]")
                for index, item in enumerate(value.items)
            ]
        if of_mapping is not None and isinstance(value, Mapping):
            return {
                name: self._converted(of_mapping, inner, label, f"{key}.{name}")
                for name, _, inner in self._once(value, f"{label}: {key}")
            }
        plain = self._plain(value)
        try:
            return msgspec.convert(plain, hint)
        except msgspec.ValidationError as error:
            said, _, path = str(error).partition(" - at `$")
            what, note = _reworded(said, plain, hint)
            below = path.rstrip("`")
            self._problems.add(f"{label}: '{key}{below}' {what}", _place_of(value, below), note=note)
            return None

    def _inner(self, spec: type[msgspec.Struct], mapping: Mapping, label: str) -> Any:  # noqa: ANN401 (a spec)
        entry = self._read("", spec, mapping, label)
        return None if entry is None else entry.spec

    def _check_references(self, value: Value, label: str) -> None:
        """Report references that lead nowhere whatever the environment is."""
        for scalar in _scalars(value):
            for match in REFERENCE.finditer(scalar.text) if isinstance(scalar.value, str) else ():
                wrong = form_problem(match)
                if wrong is not None:
                    self._problems.add(f"{label}: {wrong[0]}", scalar.place, note=wrong[1])

    def _plain(self, value: Value) -> Any:  # noqa: ANN401 (whatever YAML says)
        """Return a value as plain Python."""
        if isinstance(value, Scalar):
            return value.value
        if isinstance(value, Items):
            return [self._plain(item) for item in value.items]
        return {name: self._plain(inner) for name, _, inner in self._once(value, "a mapping")}

    def _unknown(self, name: str, place: Place, label: str, known: list[str]) -> str | None:
        """Report a key; return the one that was meant most likely."""
        near = nearest(name.replace("-", "_"), known) or nearest(name, known)
        note = f"did you mean '{near}'?" if near else f"known here: {', '.join(known)}"
        self._problems.add(f"unknown key '{name}' of {label}", place, note=note, help=SCHEMA_COMMAND)
        return near

    def _check_names(self, lists: Iterable[Sequence[Entry | NameOf]]) -> None:
        """Report names that two entries of one list have."""
        for entries in lists:
            seen: dict[str, Place] = {}
            for entry in entries:
                place = entry.at("name", "function") if isinstance(entry, Entry) else entry.place
                if entry.name in seen:
                    first = seen[entry.name]
                    label = entry.label if isinstance(entry, Entry) else f"'{entry.name}'"
                    self._problems.add(
                        f"{label} is there twice, first in line {first.line}",
                        place,
                        note="names are unique",
                        related=first if first.line != place.line else None,
                    )
                seen.setdefault(entry.name, place)


_INLINE: Final[dict[str, tuple[str, type[msgspec.Struct]]]] = {
    "chat_model": ("chat_model_setups", InlineSetupSpec),
    "prompt": ("prompts", InlinePromptSpec),
}
"""What an agent may have in place of a name: its list, and what it says."""

_EXAMPLES = {
    "function": "shop.actions:review",
    "trigger_conditions": "[input]",
    "class": "openai",
    "connection": "the name of a connection",
    "key": "tenant",
    "content": "Be brief.",
}


def _example(key: str) -> str:
    return _EXAMPLES.get(key, "support")


def _function_name(reference: str) -> str:
    return reference.rpartition(":")[2].rpartition(".")[2]


def _noun(section: str) -> str:
    return "agent" if section == "agents" else SECTIONS[section].noun


def _label(section: str, mapping: Mapping) -> str:
    texts = {key: value.text for key, _, value in mapping.entries if isinstance(value, Scalar)}
    name = texts.get("name") or _function_name(texts.get("function", ""))
    return f"{_noun(section)} '{name}'" if name else f"this {_noun(section)}"


def _key(name: str, fields: Collection[str], places: Collection[str]) -> str:
    """Return the key that a name stands for; ``type`` is an argument where the class is named already."""
    is_class = "class" in fields and name in CLASS_KEYS
    return "class" if is_class and not (name == "type" and "class" in places) else name


def _scalars(value: Value) -> Iterator[Scalar]:
    if isinstance(value, Scalar):
        yield value
        return
    for inner in value.items if isinstance(value, Items) else [inner for _, _, inner in value.entries]:
        yield from _scalars(inner)


def _place_of(value: Value, path: str) -> Place:
    """Return the place of what msgspec names by ``[0].role`` below a value, as near as it can be told."""
    for index, name in re.findall(r"\[(\d+|\.\.\.)\]|\.(\w+)", path):
        if isinstance(value, Items) and index.isdecimal():
            value = value.items[int(index)]
        elif isinstance(value, Mapping) and name:
            value = next((inner for key, _, inner in value.entries if key == name), value)
    return value.place


def _struct_in(hint: Any, container: type | None) -> type[msgspec.Struct] | None:  # noqa: ANN401 (a type hint)
    """Return the struct that a type may be, or with ``container`` the one that its elements are."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _struct_in(inner[0], container)
    if origin in (typing.Union, types.UnionType):
        return next((found for one in inner if (found := _struct_in(one, container)) is not None), None)
    if container is not None:
        return _struct_in(inner[-1], None) if origin is container else None
    return hint if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else None


def _choices(hint: Any) -> list[str]:  # noqa: ANN401 (a type hint)
    """Return the texts of the first choice in a type."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return next((found for inner in typing.get_args(hint) if (found := _choices(inner))), [])


def _reworded(said: str, plain: object, hint: Any) -> tuple[str, str]:  # noqa: ANN401 (a type hint)
    """Return what msgspec says in the words of the other problems, and what would be right."""
    if wrong := _WRONG_KIND.fullmatch(said):
        kinds = [_KINDS.get(kind, kind) for kind in wrong[1].split(" | ") if kind != "null"]
        note = f"{' or '.join(kinds)} is wanted"
        if wrong[2] == "int" and "a text" in kinds:
            note = f"did you mean '{plain}s'?" if "(ms|s|m" in str(hint) else f'{note}; write "{plain}"'
        return f"is {_KINDS.get(wrong[2], wrong[2])}", note
    if wrong := _WRONG_TEXT.fullmatch(said):
        if "ms|s" in wrong[1]:
            return "is no duration", "a number with a unit (ms, s, m, h, d), such as 30s"
        return ("is not module:name", "such as shop.tools:find_orders") if ":" in wrong[1] else ("is blank", "")
    if limit := _OUT_OF_RANGE.fullmatch(said):
        return "is out of range", f"{'at least' if limit[1] == '>=' else 'at most'} {limit[2]}"
    if said.startswith("Expected `array` of length"):
        return "is empty", ""
    if said.startswith("Invalid enum value"):
        choices = _choices(hint)
        near = nearest(str(plain).replace("_", "-"), choices) or nearest(str(plain), choices)
        return f"is unknown: {said.removeprefix('Invalid enum value ')}", (
            f"did you mean '{near}'? one of {', '.join(choices)}" if near else f"one of {', '.join(choices)}"
        )
    return f"is wrong: {said[0].lower()}{said[1:]}".replace("`", "'"), ""
