"""The keys of a job file, derived from the structs that hold their values.

A field's name becomes a key by rule: ``_`` is written ``-``, and the suffixes ``_ms`` and ``_bytes`` are left out, because the
unit is in the value: field `checkpoint.interval_ms` is key ``checkpoint.interval`` and variable
``AGENTFLOW_CHECKPOINT_INTERVAL``. A field that is a union of tagged structs is a section of which one kind is chosen:
``source: {jsonl: {…}}``. A field that is a dict of structs is an open section: names below it are free, dots included, and the
last part is a key of the struct: ``event-log.type.shop.order.level``.
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
from agentflow.runtime.settings import JobSettings, key_name

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
    COLUMNS = "names and types"


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
        most: Largest number.
        above: The number is larger than this.
        pattern: Regular expression of a text.
        choices: The values of a choice.
        is_verbatim: Also blanks, and nothing at all, are a text.
        is_secret: Its value is not for everybody's eyes.
    """

    path: Path
    fields: Path
    kind: Kind
    description: str
    default: Any
    is_optional: bool
    least: int | None = None
    most: int | None = None
    above: int | None = None
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    is_verbatim: bool = False
    is_secret: bool = False

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
        choices = " | ".join(self.choices)
        text = {
            Kind.DURATION: "duration, such as 5s",
            Kind.SIZE: "size, such as 64MiB",
            Kind.CHOICE: choices,
            Kind.TEXTS: f"{choices}, or a list of them" if choices else Kind.TEXTS.value,
        }.get(self.kind, self.kind.value)
        return f"{text}, or null" if self.is_optional else text

    @property
    def default_text(self) -> str:
        """Its default as it is written in a file."""
        if self.default is None:
            return "null"
        quoted = f"'{self.default}'" if isinstance(self.default, str) else "''"
        if self.kind is Kind.DURATION:
            return duration_text(self.default)
        if self.kind is Kind.SIZE:
            return size_text(self.default)
        if self.kind is Kind.TEXTS:
            return f"[{', '.join(text or quoted for text in self.default)}]"
        return quoted if self.is_verbatim else str(self.default)


class Section(msgspec.Struct):
    """A mapping of keys.

    Attributes:
        path: Its parts; empty for the whole file.
        children: Names below it, in order.
        description: One sentence, where there is one.
        fields: Names of the struct fields that lead to it.
        is_choice: Exactly one of its children is given (the kinds of a source).
        is_required: It must be given.
        struct: What a kind of a choice is made of, or a name below an open section.
        leaves: Keys that may stand behind a name of an open section; their paths have a placeholder for the name.
        known: Names below an open section that agentflow itself knows.
    """

    path: Path
    children: list[str] = []
    description: str = ""
    fields: Path = ()
    is_choice: bool = False
    is_required: bool = False
    struct: type[msgspec.Struct] | None = None
    leaves: dict[str, Key] = {}
    known: tuple[str, ...] = ()

    def leaf(self, path: Path) -> Key | None:
        """Return the key of a path below this open section; None when its last part is none, or there is no name."""
        depth = len(self.path)
        template = self.leaves.get(path[-1])
        if template is None or len(path) < depth + 2:
            return None
        fields = (*self.fields, ".".join(path[depth:-1]), template.fields[-1])
        return msgspec.structs.replace(template, path=path, fields=fields)


class KeyTable(msgspec.Struct):
    """All keys and sections, by path; keys below open sections are made when they are asked for.

    Attributes:
        free: Sections of which agents or functions decide the keys.
    """

    keys: dict[Path, Key] = {}
    sections: dict[Path, Section] = {}
    free: list[Path] = []

    def free_section(self, path: Path) -> Path | None:
        """Return the free section that a path is, or is below; None: neither."""
        return next((section for section in self.free if path[: len(section)] == section), None)

    @property
    def every(self) -> list[Key]:
        """All keys, then those of open sections, with a placeholder for the name."""
        return [*self.keys.values(), *(leaf for section in self.open_sections for leaf in section.leaves.values())]

    @property
    def open_sections(self) -> list[Section]:
        """Sections with free names."""
        return [section for section in self.sections.values() if section.leaves]

    def open_section(self, path: Path) -> Section | None:
        """Return the open section that a path is, or is below of; None: none."""
        return next((section for section in self.open_sections if path[: len(section.path)] == section.path), None)

    def find(self, path: Path) -> Key | None:
        """Return the key of a path, also below an open section; None when there is none."""
        if (key := self.keys.get(path)) is not None:
            return key
        section = self.open_section(path)
        return None if section is None else section.leaf(path)


def variable_of(name: str) -> str:
    """Return the environment variable of a dotted key."""
    return "AGENTFLOW_" + name.replace(".", "_").replace("-", "_").upper()


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
    table.free.append((FREE,))
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
        if shape.named is not None:
            table.sections[below] = _open_section(below, below_fields, shape, shape.named)
            continue
        if shape.is_free:
            table.sections[below] = Section(below, [], shape.description, below_fields)
            table.free.append(below)
            continue
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


def _open_section(path: Path, fields: Path, shape: _Shape, struct: type[msgspec.Struct]) -> Section:
    inner = KeyTable(sections={(): Section(())})
    placeholder = f"<{shape.noted('name')}>"
    _add_fields(inner, (), (), struct, msgspec.structs.fields(struct))
    leaves = {
        name: msgspec.structs.replace(key, path=(*path, placeholder, name), fields=(*fields, placeholder, *key.fields))
        for (name,), key in inner.keys.items()
    }
    known = shape.noted("known") or ()
    return Section(path, [], shape.description, fields, struct=struct, leaves=leaves, known=known)


class _Shape:
    """A type hint taken apart: its alternatives, and what its `Meta` say."""

    def __init__(self, hint: Any) -> None:  # noqa: ANN401 (a type hint)
        self.metas: list[Meta] = []
        self.alternatives: list[Any] = list(self._open(hint))
        self.structs = [one for one in self.alternatives if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        below = [typing.get_args(one)[1] for one in self.alternatives if typing.get_origin(one) is dict]
        structs = [one for one in below if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        self.named: type[msgspec.Struct] | None = structs[0] if structs else None
        self.is_free = bool(below) and not structs

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

    def noted(self, name: str) -> Any:  # noqa: ANN401 (whatever the `Meta` says)
        return next((meta.extra[name] for meta in self.metas if meta.extra and name in meta.extra), None)

    def key(self, path: Path, fields: Path, default: Any) -> Key:  # noqa: ANN401 (any default)
        kinds = [one for one in self.alternatives if one is not type(None)]
        assert len(kinds) == 1, f"{'.'.join(path)}: a key has one kind of value, not {kinds}"
        return Key(
            path=path,
            fields=fields,
            kind=_kind(kinds[0], self.noted("unit")),
            description=self.description,
            default=default,
            is_optional=type(None) in self.alternatives,
            least=_number(max((meta.ge for meta in self.metas if meta.ge is not None), default=None)),
            most=_number(min((meta.le for meta in self.metas if meta.le is not None), default=None)),
            above=_number(max((meta.gt for meta in self.metas if meta.gt is not None), default=None)),
            pattern=next((meta.pattern for meta in self.metas if meta.pattern), None),
            choices=_choices(kinds[0]),
            is_verbatim=bool(self.noted("verbatim")),
            is_secret=bool(self.noted("secret")),
        )


def _number(limit: float | None) -> int | None:
    return None if limit is None else int(limit)


def _choices(hint: Any) -> tuple[str, ...]:  # noqa: ANN401 (a type hint)
    """Return the values of a choice, or of the elements of a list of choices."""
    if typing.get_origin(hint) is tuple:
        return _choices(typing.get_args(hint)[0])
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _kind(hint: Any, unit: str | None) -> Kind:  # noqa: ANN401 (a type hint)
    if unit is not None:
        return Kind(unit)
    if typing.get_origin(hint) is Literal:
        return Kind.CHOICE
    if typing.get_origin(hint) is tuple:
        return Kind.TEXTS
    return {str: Kind.TEXT, int: Kind.COUNT, float: Kind.NUMBER, bool: Kind.FLAG}[hint]
