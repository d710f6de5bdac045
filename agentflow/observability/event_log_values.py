"""How values look in the event log: redacted, cut at level standard, as JSON.

Nearly all values need neither, and are JSON already. So a value is not looked at but proved: a `ValueForm` learns the shape of the
values that it has found free of secrets and short, as a type of msgspec; whatever decodes as that type, strictly, has no field that
was not looked at, no long text or list, and no depth that would be cut. That takes 100 to 200 ns, in one call. What is not proved
is decoded, redacted, cut and encoded, away from the event loop; and the form learns from it.

Rejected: looking for secret names in the bytes (seven searches cost more than the proof, and escapes hide names from them).
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Annotated, Any, Union

import msgspec

from agentflow.api.codecs import JSON, MSGPACK, Codec
from agentflow.runtime.redaction import Nodes, Redaction, following, go_below
from agentflow.runtime.settings import TruncationSettings

_FIELDS_MAX = 200
_LESSONS_MAX = 50
_EAGER = 16  # values that a form looks at on the event loop, at its beginning
_UNREADABLE = b'"<nested too deep>"'
NOT_PROVED = (msgspec.MsgspecError, UnicodeDecodeError, TypeError, RecursionError)
"""What a proof raises for a value that it does not hold for."""

_encode = msgspec.json.Encoder(enc_hook=repr).encode


class Truncation:
    """Leaves out what large values have too much of, as Flink Agents does.

    A long text becomes ``{"truncatedString": "first characters...", "omittedChars": n}``, a long list ``{"truncatedList": […],
    "omittedElements": n}``; an object at the greatest depth keeps its plain fields only: ``{"truncatedObject": {…}, "omittedFields": n}``.
    """

    def __init__(self, settings: TruncationSettings) -> None:
        self.chars_max = settings.max_string_length
        self.elements_max = settings.max_array_elements
        self.depth_max = settings.max_depth
        self.omissions = 0
        """Values of which something was left out."""

    def value(self, value: Any, depth: int) -> Any:  # noqa: ANN401 (any value)
        """Return a value whose objects are at ``depth``, cut; the same object where nothing is left out."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return self._object(value, depth)
        if isinstance(value, list | tuple):
            return self._list(value, depth)
        if isinstance(value, bytes) and self.chars_max and len(value) > self.chars_max // 4 * 3:
            return self._text(base64.b64encode(value).decode())  # as it is encoded
        return value

    def _text(self, text: str) -> Any:  # noqa: ANN401 (a text, or what stands for it)
        kept = self.chars_max
        if not kept or len(text) <= kept:
            return text
        return {"truncatedString": f"{text[:kept]}...", "omittedChars": len(text) - kept}

    def _list(self, items: list[Any] | tuple[Any, ...], depth: int) -> Any:  # noqa: ANN401 (a list, or what stands for it)
        kept = self.elements_max
        omitted = len(items) - kept if kept and len(items) > kept else 0
        cut = [
            self.value(item, depth + 1 if isinstance(item, list | tuple) else depth)
            for item in (items[:kept] if omitted else items)
        ]
        if omitted:
            return {"truncatedList": cut, "omittedElements": omitted}
        return items if all(new is old for new, old in zip(cut, items, strict=True)) else cut

    def _object(self, fields: dict[Any, Any], depth: int) -> Any:  # noqa: ANN401 (an object, or what stands for it)
        if self.depth_max and depth >= self.depth_max:
            plain = {
                name: self._text(inner) if isinstance(inner, str) else inner
                for name, inner in fields.items()
                if not isinstance(inner, dict | list | tuple)
            }
            if len(plain) < len(fields):
                return {"truncatedObject": plain, "omittedFields": len(fields) - len(plain)}
            cut = plain
        else:
            cut = {name: self.value(inner, depth + 1) for name, inner in fields.items()}
        return fields if all(cut[name] is inner for name, inner in fields.items()) else cut


class ValueForm:
    """The values of one attribute, or of one type of event.

    Attributes:
        proof: Decodes a value that may be shown as it is; raises one of `NOT_PROVED` for any other. Of msgpack the result is encoded.
        is_json: Whether values are JSON.
        opening: What stands before a value in the record…
        closing: …and behind it.

    Args:
        codec: How values are encoded; None: they are texts in UTF-8.
        redaction: What must not be seen.
        truncation: What is left out; None: nothing.
        name: Name of the attribute; empty: the value is all attributes of an event.
    """

    def __init__(
        self, codec: Codec | None, redaction: Redaction, truncation: Truncation | None, name: str = ""
    ) -> None:
        self.is_json = codec is JSON
        self.proof: Callable[[bytes], object] = refuse
        self._is_whole = bool(name) and truncation is not None and truncation.depth_max == 1  # the attributes are cut
        self.opening, self.closing = (b'{"%b":' % name.encode(), b"}") if name and not self._is_whole else (b"", b"")
        self._codec = codec
        self._decoder: Any = msgspec.json.Decoder if self.is_json else msgspec.msgpack.Decoder
        self._redaction = redaction
        self._truncation = truncation
        self._name = name
        self._shape = _Shape()
        can_learn = codec in (JSON, MSGPACK) and redaction.is_by_shape and not self._is_whole
        self._lessons = 0 if can_learn else _LESSONS_MAX
        self._eager = _EAGER if can_learn else 0
        self._lock = threading.Lock()

    def shown(self, payload: bytes | None) -> bytes | None:
        """Return a value as it may be seen, if that can be told at once; else None, and `render` is to be called, elsewhere."""
        if payload is None:
            return b"null"
        try:
            if self.is_json:
                if 10 not in payload and (92 not in payload or not has_quotes_inside(payload)):
                    self.proof(payload)
                    return payload
            elif 34 not in payload:  # a quote, or a number that looks like one
                return _encode(self.proof(payload))
        except NOT_PROVED:
            pass
        return self.eager(payload)

    def eager(self, payload: bytes) -> bytes | None:
        """Render one of the first values that are not proved, so that the next ones are; None: it is not one of these."""
        if not self._eager:
            return None
        self._eager -= 1
        return self.render(payload)

    def render(self, payload: bytes | None) -> bytes:
        """Return a value as JSON that may be seen; from any thread."""
        value, is_read = self._decoded(payload)
        shown = self._redaction.value(value, self._name) if is_read else self._unread(value)
        try:
            if self._is_whole:
                shown = {self._name: shown}
            cut = shown if self._truncation is None else self._truncation.value(shown, self._depth)
            encoded = _encoded(cut)
        except RecursionError:
            return _UNREADABLE
        if cut is not shown and self._truncation is not None:
            self._truncation.omissions += 1
        if cut is value and is_read and self._lessons < _LESSONS_MAX:
            self._learn(value)
        return encoded

    @property
    def _depth(self) -> int:
        return 2 if self._name and not self._is_whole else 1

    def _decoded(self, payload: bytes | None) -> tuple[Any, bool]:
        """Return the value, or the payload where it cannot be decoded, and which it is."""
        if payload is None:
            return None, True
        try:
            return payload.decode() if self._codec is None else self._codec.decode(payload, Any), True
        except Exception:  # noqa: BLE001 (a codec may be user code)
            return payload, False

    def _unread(self, payload: bytes) -> str | bytes:
        """Return what cannot be decoded as it came, but for what looks like a secret: it may be a document with a brace missing."""
        try:
            return self._redaction.unread(payload.decode(), self._name)
        except UnicodeDecodeError:
            text = payload.decode("utf-8", "replace")
            shown = self._redaction.unread(text, self._name)
            return payload if shown == text else shown

    def _learn(self, value: Any) -> None:  # noqa: ANN401 (any value)
        with self._lock:
            if not self._shape.learn(value, [_FIELDS_MAX - self._shape.size]):
                return
            self._lessons += 1
            try:
                kind = self._shape.type(self._redaction, self._truncation, self._redaction.begin(self._name))
                self.proof = self._decoder(kind).decode
            except (ValueError, TypeError, RecursionError):  # a name that no struct can have
                self._lessons = _LESSONS_MAX


def shown_key(redaction: Redaction, key: bytes) -> bytes:
    """Return a business key, in msgpack, as JSON that may be seen; it does not raise."""
    try:
        return _encoded(redaction.key(msgspec.msgpack.decode(key)))
    except (msgspec.MsgspecError, RecursionError):
        return _UNREADABLE


def has_quotes_inside(payload: bytes) -> bool:
    """Whether a text in JSON may be JSON itself, which no proof looks into."""
    return b'\\"' in payload or b"\\u0022" in payload


class _Shape:
    """What was seen at one place of values, and found to need no change. None may stand anywhere.

    Attributes:
        is_plain: A text, number or truth value was seen.
        fields: Fields of objects; None: no object was seen.
        items: What lists hold; None: no list was seen.
        size: Fields here and below.
    """

    def __init__(self) -> None:
        self.is_plain = False
        self.fields: dict[str, _Shape] | None = None
        self.items: _Shape | None = None
        self.size = 0

    def learn(self, value: Any, room: list[int]) -> bool:  # noqa: ANN401 (any value)
        """Take in what ``value`` has, as far as there is room for fields; whether any of it is news."""
        before, is_news = room[0], False
        if isinstance(value, dict):
            is_news = self.fields is None
            fields = self.fields = {} if self.fields is None else self.fields
            for name, inner in value.items():
                if name not in fields:
                    if not room[0] or not isinstance(name, str):
                        continue
                    room[0] -= 1
                    is_news, fields[name] = True, _Shape()
                is_news = fields[name].learn(inner, room) or is_news
        elif isinstance(value, list):
            is_news = self.items is None
            items = self.items = _Shape() if self.items is None else self.items
            for inner in value:
                is_news = items.learn(inner, room) or is_news
        elif isinstance(value, str | int | float):
            is_news = not self.is_plain
            self.is_plain = True
        self.size += before - room[0]
        return is_news

    def type(self, redaction: Redaction, truncation: Truncation | None, nodes: Nodes, name: str = "") -> Any:  # noqa: ANN401 (a type)
        """Return the type that such values decode as. Where paths lead into a text, it has none: only its JSON tells what is where."""
        chars, elements = (truncation.chars_max, truncation.elements_max) if truncation is not None else (0, 0)
        kind: Any = None
        if self.is_plain:
            text: Any = Annotated[str, msgspec.Meta(max_length=chars)] if chars else str
            kind = int | float | None
            if not redaction.spares_numbers(name):
                kind = kind | bool if go_below(nodes) else kind | bool | text
        if self.items is not None:
            items: Any = list[self.items.type(redaction, truncation, following(nodes, 0))]  # type: ignore[misc]  # a type that is made now
            kind = Union[kind, Annotated[items, msgspec.Meta(max_length=elements)] if elements else items]  # noqa: UP007
        if self.fields is not None:
            kind = Union[kind, self._struct(redaction, truncation, nodes)]  # noqa: UP007 (`None | None` is no type)
        return kind

    def _struct(self, redaction: Redaction, truncation: Truncation | None, nodes: Nodes) -> Any:  # noqa: ANN401 (a type)
        assert self.fields is not None
        fields = [
            (
                f"f{place}",
                Union[inner.type(redaction, truncation, following(nodes, name), name), msgspec.UnsetType],  # noqa: UP007
                msgspec.UNSET,
            )
            for place, (name, inner) in enumerate(self.fields.items())
        ]
        rename = {f"f{place}": name for place, name in enumerate(self.fields)}
        return msgspec.defstruct("Proved", fields, rename=rename, forbid_unknown_fields=True, gc=False)


def _encoded(value: Any) -> bytes:  # noqa: ANN401 (any value)
    try:
        return _encode(value)
    except (TypeError, ValueError):  # names that JSON cannot have
        return _encode(repr(value))


def refuse(value: bytes) -> object:  # noqa: ARG001 (the signature of a proof)
    """Prove nothing."""
    raise TypeError
