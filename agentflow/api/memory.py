"""Sensory and short-term memory as an action sees them.

A task reads through its own write set and writes only into it. The write set is encoded when the task completes; `get`
returns a fresh copy each time. So changing a list that `get` returned changes nothing, and a failed task leaves no trace.

Values lie at dotted paths. A path holds a value or is an object (has fields), never both.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agentflow.api.encoding import check_text
from agentflow.api.memory_codec import (
    OBJECT,
    check_value,
    decode_value,
    encode_object,
    encode_value,
    restamp,
    stamp_of,
)
from agentflow.errors import ContextClosed, ValueTooLarge

if TYPE_CHECKING:
    from agentflow.api.runner_context import RunnerContext

_SCALARS = frozenset({bool, float, str, bytes, type(None)})


class _Mark(enum.Enum):
    """What a write set holds besides values."""

    UNKNOWN = 1  # not in the cache: ask the store
    DELETED = 2
    OBJECT = 3


_UNKNOWN: Final = _Mark.UNKNOWN
_DELETED: Final = _Mark.DELETED
_OBJECT: Final = _Mark.OBJECT


class MemoryType(enum.StrEnum):
    """Scopes of memory: one run, or one key across runs."""

    SENSORY = "sensory"
    SHORT_TERM = "short_term"


class MemoryRef(msgspec.Struct, frozen=True, gc=False):
    """Names a value in memory; small enough to be sent in an event instead of the value."""

    memory_type: MemoryType
    path: str

    @classmethod
    def create(cls, memory_type: MemoryType, path: str) -> MemoryRef:
        """Return a reference to ``path``."""
        return cls(memory_type, path)

    def resolve(self, ctx: RunnerContext) -> Any:  # noqa: ANN401 (memory values)
        """Read the value in the run of ``ctx``."""
        memory = ctx.sensory_memory if self.memory_type is MemoryType.SENSORY else ctx.short_term_memory
        return memory.get(self.path)


class MemoryLimits(msgspec.Struct, frozen=True):
    """What a job says about its memory values.

    Args:
        value_max: Largest encoded value in bytes.
        ttl_ms: Time to live since the last use; None: values live for ever.
        is_refreshed_by_read: Whether reading counts as use (``ON_READ_AND_WRITE``).
    """

    value_max: int = 64 * 2**20
    ttl_ms: int | None = None
    is_refreshed_by_read: bool = False


class MemoryScope(msgspec.Struct, eq=False):
    """One task's view of one memory: committed entries below, its own write set above.

    Args:
        memory_type: Which memory.
        entries: Stored values by path, as far as they are cached; None: known to be absent.
        fetch: Called with ``owner`` and a path that is not cached; fills ``entries`` and returns the stored value. When it
            returns None, ``entries`` is complete for this key.
        owner: Whose memory this is.
        now_ms: The run's clock: TTL is judged by it.
        limits: Limits of the job.
        writes: The write set: values and marks by path.
        touched: Paths that were read and whose stamp the completion renews.
        kept: Paths of the write set that are written also if the task does not complete; None: there are none.
        is_open: The task has not ended.
    """

    memory_type: MemoryType
    entries: dict[str, bytes | None]
    fetch: Callable[[Any, str], bytes | None]
    owner: Any
    now_ms: int
    limits: MemoryLimits
    writes: dict[str, object] = {}
    touched: dict[str, None] | None = None
    kept: dict[str, None] | None = None
    is_open: bool = True

    def read(self, path: str) -> object:
        """Return a fresh copy of the value at ``path``, or a mark: deleted, object, or unknown (there is none)."""
        if path in self.writes:
            value = self.writes[path]
            return value if type(value) in _SCALARS or type(value) is int else _copied(value)
        stored = self.stored(path)
        if stored is None:
            return _UNKNOWN
        return _OBJECT if stored[0] >= OBJECT else decode_value(stored)

    def stored(self, path: str) -> bytes | None:
        """Return the committed, unexpired encoded value at ``path``."""
        stored = self.entries.get(path)
        if stored is None and path not in self.entries:
            stored = self.fetch(self.owner, path)
        if stored is None or self.limits.ttl_ms is None:
            return stored
        return self._unexpired(path, stored)

    def _unexpired(self, path: str, stored: bytes) -> bytes | None:
        stamp_ms = stamp_of(stored)
        if stamp_ms is not None and self.limits.ttl_ms is not None and stamp_ms + self.limits.ttl_ms <= self.now_ms:
            return None
        if self.limits.is_refreshed_by_read:
            if self.touched is None:
                self.touched = {}
            self.touched[path] = None
        return stored

    def check_open(self) -> None:
        """Raise ContextClosed when the action has ended."""
        if not self.is_open:
            raise ContextClosed(
                f"{self.memory_type} memory was used after its action had ended",
                fix="keep no reference to ctx or its memory beyond the action",
            )

    def paths_below(self, prefix: str) -> list[str]:
        """Return every live path that starts with ``prefix``, sorted."""
        return sorted(self._live_below(prefix))

    def has_below(self, prefix: str) -> bool:
        """Whether a live path starts with ``prefix``."""
        return next(self._live_below(prefix), None) is not None

    def _live_below(self, prefix: str) -> Iterator[str]:
        self.fetch(self.owner, prefix)  # completes the cache, unless the prefix itself is an entry
        for path in self.entries:
            if path.startswith(prefix) and path not in self.writes and self.stored(path) is not None:
                yield path
        for path, value in self.writes.items():
            if path.startswith(prefix) and value is not _DELETED:
                yield path

    def check_leaf(self, path: str) -> None:
        """Raise ValueError unless a value may stand at ``path``: it is no object, and nothing above it is a value."""
        if not path.isascii():
            check_text(path, "memory path")
        parts = path.split(".")
        if not all(parts):
            msg = f"memory path {path!r} has an empty part; write names separated by single dots"
            raise ValueError(msg)
        for depth in range(1, len(parts)):
            above = ".".join(parts[:depth])
            if self.read(above) not in (_UNKNOWN, _DELETED, _OBJECT):
                msg = f"memory path '{path}': '{above}' holds a value, not an object; delete it first"
                raise ValueError(msg)
        if self.read(path) is _OBJECT or self.has_below(path + "."):
            msg = f"memory path '{path}' is an object; delete it before it becomes a value"
            raise ValueError(msg)

    def encoded_writes(self) -> dict[str, bytes | None] | None:
        """Encode the write set, at the end of the task; None when it is empty.

        Raises:
            TypeError: A value was changed into something that cannot be stored.
            ValueTooLarge: An encoded value is above the limit.
        """
        self.is_open = False
        if not self.writes and self.touched is None:
            return None
        stamp_ms = self._stamp_ms
        encoded = {path: self._encoded(path, value, stamp_ms) for path, value in self.writes.items()}
        for path in self.touched or ():
            stored_now = self.entries.get(path)
            if path not in encoded and stored_now is not None and stamp_of(stored_now) != self.now_ms:
                encoded[path] = restamp(stored_now, self.now_ms)
        return encoded

    def encoded_kept(self) -> dict[str, bytes | None]:
        """Encode what is written also if the task does not complete."""
        stamp_ms = self._stamp_ms
        return {path: self._encoded(path, self.writes[path], stamp_ms) for path in list(self.kept or ())}

    @property
    def _stamp_ms(self) -> int | None:
        return None if self.limits.ttl_ms is None else self.now_ms

    def _encoded(self, path: str, value: object, stamp_ms: int | None) -> bytes | None:
        kind = type(value)
        if kind is _Mark:
            return None if value is _DELETED else encode_object(stamp_ms)
        if kind is list or kind is dict:
            check_value(value, path)
        stored = encode_value(value, stamp_ms)
        if len(stored) > self.limits.value_max:
            raise ValueTooLarge(
                f"the value at memory path '{path}' has {len(stored):,} bytes",
                expected=f"at most {self.limits.value_max:,} bytes (state.value-max)",
                fix="store less, or split it over several paths",
            )
        return stored


def set_anyway(memory: MemoryObject, path: str, value: object) -> None:
    """Put a value that is written whatever becomes of the task: an account of what has been paid."""
    scope = memory._scope  # noqa: SLF001 (of this module)
    ref = memory.set(path, value)
    if scope.kept is None:
        scope.kept = {}
    scope.kept[ref.path] = None


def _copied(value: object) -> object:
    """Return a deep copy of a storable value."""
    if type(value) is list:
        return [_copied(item) for item in value]
    if type(value) is dict:
        return {name: _copied(item) for name, item in value.items()}
    return value


class _NoWrites(dict[str, object]):
    """The write set of a memory that can only be read."""

    def __setitem__(self, path: str, value: object) -> None:
        msg = f"memory path '{path}' can only be read here; actions of the key write it"
        raise TypeError(msg)


def read_only_memory(entries: dict[str, bytes | None], now_ms: int, limits: MemoryLimits) -> MemoryObject:
    """Return the short-term memory of a key for somebody who only looks.

    Args:
        entries: All stored values by path; None: absent.
        now_ms: The time, which judges what has expired.
        limits: Limits of the job.
    """
    unrefreshed = msgspec.structs.replace(limits, is_refreshed_by_read=False)
    return MemoryObject(
        MemoryScope(MemoryType.SHORT_TERM, entries, lambda owner, path: None, None, now_ms, unrefreshed, _NoWrites())  # noqa: ARG005
    )


class MemoryObject(msgspec.Struct, eq=False):
    """An object in memory: the root of a memory, or what lies below a path.

    All methods take a dotted path relative to this object, or a `MemoryRef`.
    """

    _scope: MemoryScope
    _prefix: str = ""

    def __repr__(self) -> str:
        return f"MemoryObject({self._scope.memory_type}, {self._prefix.rstrip('.')!r})"

    def _path(self, path: str | MemoryRef) -> str:
        if type(path) is not str:
            if not isinstance(path, MemoryRef):
                msg = f"a memory path is a str or a MemoryRef, not {type(path).__name__}"
                raise TypeError(msg)
            return path.path
        return self._prefix + path if self._prefix else path

    def get(self, path: str | MemoryRef, default: Any = None) -> Any:  # noqa: ANN401 (memory values)
        """Return a fresh copy of the value at ``path``; a `MemoryObject` when it is an object; else ``default``."""
        scope = self._scope
        if not scope.is_open:
            scope.check_open()
        full = path if type(path) is str and not self._prefix else self._path(path)
        if full not in scope.writes:
            stored = scope.stored(full)
            if stored is not None and stored[0] < OBJECT:
                return decode_value(stored)
            is_object = stored is not None
        else:
            value = scope.read(full)
            if type(value) is not _Mark:
                return value
            is_object = value is _OBJECT
        return MemoryObject(scope, full + ".") if is_object or scope.has_below(full + ".") else default

    def set(self, path: str | MemoryRef, value: Any) -> MemoryRef:  # noqa: ANN401 (memory values)
        """Put ``value`` at ``path``; objects above it come into being.

        Raises:
            TypeError: The value, or something in it, cannot be stored; the text names the path and the fix.
            ValueError: The path is an object, or something above it is a value.
        """
        scope = self._scope
        if not scope.is_open:
            scope.check_open()
        full = path if type(path) is str and not self._prefix else self._path(path)
        if type(value) not in _SCALARS or (type(value) is str and not value.isascii()):
            check_value(value, full)
        writes = scope.writes
        if full in writes:
            is_value = type(writes[full]) is not _Mark
        else:
            stored = scope.entries.get(full)
            is_value = stored is not None and stored[0] < OBJECT
        if not is_value:
            scope.check_leaf(full)
        writes[full] = value
        return MemoryRef(scope.memory_type, full)

    def update(self, path: str | MemoryRef, fn: Callable[[Any], Any]) -> Any:  # noqa: ANN401 (memory values)
        """Replace the value at ``path`` by ``fn(value)`` (None when there is none) and return the new value."""
        value = fn(self.get(path))
        self.set(path, value)
        return value

    def delete(self, path: str | MemoryRef) -> None:
        """Remove the value at ``path``, or the object with everything below it; nothing happens when there is none."""
        scope = self._scope
        scope.check_open()
        full = self._path(path)
        value = scope.read(full)
        if type(value) is not _Mark:
            scope.writes[full] = _DELETED  # nothing is below a value: not looked for, since that looks at every path
            return
        for below in scope.paths_below(full + "."):
            scope.writes[below] = _DELETED
        if value is _OBJECT:
            scope.writes[full] = _DELETED

    def new_object(self, path: str | MemoryRef, *, overwrite: bool = False) -> MemoryObject:
        """Make an empty object at ``path``, or return the one that is there.

        Raises:
            ValueError: A value is there and ``overwrite`` is not set.
        """
        scope = self._scope
        scope.check_open()
        full = self._path(path)
        value = scope.read(full)
        if type(value) is not _Mark:
            if not overwrite:
                msg = f"memory path '{full}' holds a value; pass overwrite=True to replace it by an object"
                raise ValueError(msg)
            scope.writes[full] = _DELETED
        if value is not _OBJECT and not scope.has_below(full + "."):
            scope.check_leaf(full)
            scope.writes[full] = _OBJECT
        return MemoryObject(scope, full + ".")

    def is_exist(self, path: str | MemoryRef) -> bool:
        """Whether a value or an object is at ``path``."""
        scope = self._scope
        scope.check_open()
        full = self._path(path)
        return scope.read(full) not in (_UNKNOWN, _DELETED) or scope.has_below(full + ".")

    def get_field_names(self) -> list[str]:
        """Return the names directly below this object, sorted."""
        scope = self._scope
        scope.check_open()
        start = len(self._prefix)
        return sorted({path[start:].split(".", 1)[0] for path in scope.paths_below(self._prefix) if len(path) > start})

    def get_fields(self) -> dict[str, Any]:
        """Return name → value of what is directly below; an object shows as ``"NestedObject"``."""
        values = {name: self.get(name) for name in self.get_field_names()}
        return {name: "NestedObject" if isinstance(value, MemoryObject) else value for name, value in values.items()}
