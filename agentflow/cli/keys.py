"""The keys of a job file, derived from the structs that hold their values.

A field's name becomes a key by rule: ``_`` is written ``-``, and the suffixes ``_ms`` and ``_bytes`` are left out, because the
unit is in the value: field `checkpoint.interval_ms` is key ``checkpoint.interval`` and variable
``AGENTFLOW_CHECKPOINT_INTERVAL``. A field that is a union of tagged structs is a section of which one kind is chosen:
``source: {jsonl: {…}}``.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agentflow.cli.job_file import Composition
from agentflow.runtime.settings import JobSettings

Path = tuple[str, ...]
FREE = "config"  # the section of which agents decide the keys
PROFILES = "profile"


class Kind(enum.Enum):
    """What a value is."""

    TEXT = "text"
    DURATION = "duration"
    SIZE = "size"
    COUNT = "whole number"
    NUMBER = "number"
    FLAG = "true or false"
    CHOICE = "one of"
    TEXTS = "text or list of texts"


class Key(msgspec.Struct, frozen=True):
    """One key.

    Attributes:
        path: Its parts.
        fields: Names of the struct fields that lead to its value.
        kind: What its value is.
        description: One sentence.
        default: As the struct holds it; NODEFAULT: the key is required where its section is used.
        is_optional: null is a value.
        least: Smallest number.
        above: The number is larger than this.
        most: Largest number.
        pattern: Regular expression of a text.
        choices: The values of a choice.
    """

    path: Path
    fields: Path
    kind: Kind
    description: str
    default: Any
    is_optional: bool
    least: int | None = None
    above: int | None = None
    most: int | None = None
    pattern: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Dotted name."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return variable_of(self.name)

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is msgspec.NODEFAULT

    @property
    def type_text(self) -> str:
        """What its value is, for people."""
        text = {
            Kind.DURATION: "duration, such as 5s",
            Kind.SIZE: "size, such as 64MiB",
            Kind.CHOICE: " | ".join(self.choices),
        }.get(self.kind, self.kind.value)
        return f"{text}, or null" if self.is_optional else text

    @property
    def default_text(self) -> str:
        """Its default as it is written in a file."""
        if self.default is None:
            return "null"
        if self.kind is Kind.DURATION:
            return duration_text(self.default)
        if self.kind is Kind.SIZE:
            return size_text(self.default)
        if self.kind is Kind.TEXTS:
            return f"[{', '.join(self.default)}]"
        return str(self.default)


class Section(msgspec.Struct):
    """A mapping of keys.

    Attributes:
        path: Its parts; empty for the whole file.
        children: Names below it, in order.
        description: One sentence, where there is one.
        fields: Names of the struct fields that lead to it.
        is_choice: Exactly one of its children is given (the kinds of a source).
        is_required: It must be given.
        struct: What a kind of a choice is made of.
    """

    path: Path
    children: list[str] = []
    description: str = ""
    fields: Path = ()
    is_choice: bool = False
    is_required: bool = False
    struct: type[msgspec.Struct] | None = None


class KeyTable(msgspec.Struct):
    """All keys and sections, by path."""

    keys: dict[Path, Key] = {}
    sections: dict[Path, Section] = {}

    def is_free(self, path: Path) -> bool:
        """Whether a path is below ``config``."""
        return path[0] == FREE


def variable_of(name: str) -> str:
    """Return the environment variable of a dotted key."""
    return "AGENTFLOW_" + name.replace(".", "_").replace("-", "_").upper()


def key_name(field: str) -> str:
    """Return the name of a field as a key."""
    return field.removesuffix("_ms").removesuffix("_bytes").replace("_", "-")


def duration_text(ms: int) -> str:
    """Return milliseconds in the largest unit that holds them whole."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def size_text(size: int) -> str:
    """Return bytes in the largest unit that holds them whole."""
    for unit, unit_size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % unit_size == 0:
            return f"{size // unit_size}{unit}"
    return f"{size}B"


@functools.cache
def key_table() -> KeyTable:
    """Return the table; the order is that of the documentation."""
    table = KeyTable()
    table.sections[()] = Section(())
    settings, composition = msgspec.structs.fields(JobSettings), msgspec.structs.fields(Composition)
    first = [field for field in settings if field.name == "job"]
    rest = [field for field in settings if field.name != "job"]
    _add_fields(table, (), (), JobSettings, first)
    _add_fields(table, (), (), Composition, composition)
    _add_fields(table, (), (), JobSettings, rest)
    table.sections[()].children.append(FREE)
    table.sections[FREE,] = Section((FREE,), description="Options for the agents, any keys: ctx.config.")
    return table


def _add_fields(
    table: KeyTable, path: Path, fields: Path, struct: type, chosen: Iterable[msgspec.structs.FieldInfo]
) -> None:
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in chosen:
        below, below_fields = (*path, key_name(field.name)), (*fields, field.name)
        shape = _Shape(hints[field.name])
        table.sections[path].children.append(below[-1])
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        if not shape.structs:
            table.keys[below] = shape.key(below, below_fields, default)
            continue
        is_choice = len(shape.structs) > 1
        table.sections[below] = section = Section(
            below, [], shape.description, below_fields, is_choice, default is msgspec.NODEFAULT
        )
        for inner in shape.structs:
            if not is_choice:
                _add_fields(table, below, below_fields, inner, msgspec.structs.fields(inner))
                continue
            kind = str(inner.__struct_config__.tag)
            section.children.append(kind)
            kind_path = (*below, kind)
            doc = " ".join((inner.__doc__ or "").split())
            table.sections[kind_path] = Section(kind_path, [], doc, (*below_fields, kind), struct=inner)
            _add_fields(table, kind_path, (*below_fields, kind), inner, msgspec.structs.fields(inner))


class _Shape:
    """A type hint taken apart: its alternatives, and what its `Meta` say."""

    def __init__(self, hint: Any) -> None:  # noqa: ANN401 (a type hint)
        self.metas: list[Meta] = []
        self.alternatives: list[Any] = list(self._open(hint))
        self.structs = [one for one in self.alternatives if isinstance(one, type) and issubclass(one, msgspec.Struct)]

    def _open(self, hint: Any) -> Iterator[Any]:  # noqa: ANN401 (a type hint)
        origin = typing.get_origin(hint)
        if origin is Annotated:
            inner, *metas = typing.get_args(hint)
            yield from self._open(inner)
            self.metas += [meta for meta in metas if isinstance(meta, Meta)]
        elif origin is typing.Union or origin is types.UnionType:
            for one in typing.get_args(hint):
                yield from self._open(one)
        else:
            yield hint

    @property
    def description(self) -> str:
        return next((meta.description for meta in reversed(self.metas) if meta.description), "")

    def key(self, path: Path, fields: Path, default: Any) -> Key:  # noqa: ANN401 (any default)
        kinds = [one for one in self.alternatives if one is not type(None)]
        assert len(kinds) == 1, f"{'.'.join(path)}: a key has one kind of value, not {kinds}"
        unit = next((meta.extra["unit"] for meta in self.metas if meta.extra and "unit" in meta.extra), None)
        return Key(
            path=path,
            fields=fields,
            kind=_kind(kinds[0], unit),
            description=self.description,
            default=default,
            is_optional=type(None) in self.alternatives,
            least=_number(max((meta.ge for meta in self.metas if meta.ge is not None), default=None)),
            above=_number(max((meta.gt for meta in self.metas if meta.gt is not None), default=None)),
            most=_number(min((meta.le for meta in self.metas if meta.le is not None), default=None)),
            pattern=next((meta.pattern for meta in self.metas if meta.pattern), None),
            choices=typing.get_args(kinds[0]) if typing.get_origin(kinds[0]) is Literal else (),
        )


def _number(limit: float | None) -> int | None:
    return None if limit is None else int(limit)


def _kind(hint: Any, unit: str | None) -> Kind:  # noqa: ANN401 (a type hint)
    if unit is not None:
        return Kind(unit)
    if typing.get_origin(hint) is Literal:
        return Kind.CHOICE
    if typing.get_origin(hint) is tuple:
        return Kind.TEXTS
    return {str: Kind.TEXT, int: Kind.COUNT, float: Kind.NUMBER, bool: Kind.FLAG}[hint]
