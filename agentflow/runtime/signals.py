"""Signals as they come in: one JSON document each, the same in a topic, in the spool of a state directory, and from code.

    {"key": "order-7", "name": "approval", "value": {"by": "ann"}, "correlation": "…", "run": "…", "step": "…", "agent": "…"}
    {"key": "order-7", "kind": "cancel", "reason": "…", "run": "…", "agent": "…"}
    {"key": "order-7", "kind": "retry", "agent": "…"}
    {"kind": "export", "request": "…"}

The last one is for the job itself: its state is wanted, for a savepoint that has every signal before this one. ``key`` and ``name`` have to be there (in a topic the record's key is the key where the document has none); ``correlation``, ``run``,
``step`` and ``agent`` narrow it down: to waits with that correlation, to one run, to one place in it, to one agent of a chain (its
name, or its place). Keys that JSON has no word for are ``{"$bytes": "<base64>"}`` and ``{"$float": "inf"}``.
"""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from agentflow.api.encoding import NOT_ENCODABLE, encode_json, encode_msgpack
from agentflow.core.inputs import CancelRequested, RecordRejected, RetryRequested, Signal, SignalReceived
from agentflow.core.records import ErrorReport, Record
from agentflow.errors import DecodeError
from agentflow.runtime.codecs import encoded_key

logger = logging.getLogger("agentflow.runtime.signals")


class SignalDocument(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One signal as JSON."""

    name: str = ""
    key: Any | msgspec.UnsetType = msgspec.UNSET
    kind: Literal["signal", "cancel", "retry", "export"] = "signal"
    reason: str = ""
    value: Any = None
    correlation: str = ""
    run: str = ""
    step: str = ""
    agent: str | int = ""
    request: str = ""


_decode = msgspec.json.Decoder(SignalDocument).decode


def encode_signal(
    key: object,
    name: str,
    value: object = None,
    *,
    correlation: str = "",
    run: str = "",
    step: str = "",
    agent: str | int = "",
) -> bytes:
    """Return the document of a signal.

    Raises:
        TypeError: Key or value cannot be encoded, or another argument is no text.
        ValueError: It has no name.
    """
    if not name:
        msg = "a signal has a name"
        raise ValueError(msg)
    return _encoded(SignalDocument(name, key, value=value, correlation=correlation, run=run, step=step, agent=agent))


def encode_control(
    key: object, kind: Literal["cancel", "retry"], *, run: str = "", reason: str = "", agent: str = ""
) -> bytes:
    """Return the document that cancels a run, or lets it try again at once.

    Raises:
        TypeError: The key cannot be encoded, or another argument is no text.
    """
    return _encoded(SignalDocument(key=key, kind=kind, run=run, reason=reason, agent=agent))


def _encoded(signal: SignalDocument) -> bytes:
    """Return a document that `SignalReader` can read: what is durable cannot be refused any more."""
    encoded_key(signal.key)
    signal.key = _written(signal.key)
    try:
        encode_msgpack(signal.value)
        document = encode_json(signal)
        _decode(document)
    except (TypeError, *NOT_ENCODABLE) as error:
        msg = f"this cannot be a signal: {error}"
        raise TypeError(msg) from error
    return document


def _written(key: Any) -> Any:  # noqa: ANN401 (a key)
    """Return a key as JSON has it, and as `_read_key` finds it again."""
    if isinstance(key, bytes):
        return {"$bytes": base64.b64encode(key).decode()}
    if isinstance(key, float) and not math.isfinite(key):
        return {"$float": repr(key)}
    return key


def _read_key(written: Any) -> Any:  # noqa: ANN401 (a key)
    match written:
        case {"$bytes": str(text), **rest} if not rest:
            return base64.b64decode(text, validate=True)
        case {"$float": "inf" | "-inf" as text, **rest} if not rest:
            return float(text)
    return written


def encode_export(request: str) -> bytes:
    """Return the document that asks a job for its state, by the id of who waits for it."""
    return encode_json(SignalDocument(kind="export", request=request))


def wait_of(document: bytes) -> tuple[str, str]:
    """Return run and place of the wait that a signal names; empty texts where it names none, or is no signal."""
    try:
        signal = _decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", ""
    return signal.run, signal.step


class ExportRequested(msgspec.Struct, frozen=True):
    """The state is wanted by whoever waits for ``request``."""

    request: str


Control = SignalReceived | CancelRequested | RetryRequested | RecordRejected | ExportRequested


class SignalReader:
    """Reads signals for a chain of agents.

    Args:
        agents: Their names, in order.
    """

    def __init__(self, agents: Sequence[str]) -> None:
        self._agents = list(agents)

    def read(self, record: Record) -> tuple[int, Control] | None:
        """Return whom it is for, as the agent's place in the chain, and what it says; rejected: it is no signal.

        None: it is for an agent that is not there. The log says so, and that is all: who mistypes a name stops no job.
        """
        try:
            return self._read(record)
        except DecodeError as error:
            return 0, RecordRejected(record, ErrorReport(type(error).__name__, error.what, is_retryable=False))

    def _read(self, record: Record) -> tuple[int, Control] | None:
        try:
            document = _decode(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _not_a_signal(record, str(error)) from error
        if document.kind == "export":
            return 0, ExportRequested(document.request)
        key: Any = document.key
        if key is msgspec.UNSET:
            if record.key is None:
                raise _not_a_signal(record, "it has no key")
            key = record.key.decode(errors="replace")
        index = self._place(document.agent)
        if index is None:
            logger.error(
                "signal %s (%s %s) is dropped: its agent is %r; the job has %s: send it again",
                record.run_id, document.kind, document.name, document.agent, ", ".join(self._agents),
            )  # fmt: skip
            return None
        try:
            encoded = encoded_key(_read_key(key))
        except (TypeError, ValueError) as error:
            raise _not_a_signal(record, f"its key cannot be one: {error}") from error
        if document.kind == "cancel":
            return index, CancelRequested(record, encoded, document.run, document.reason)
        if document.kind == "retry":
            return index, RetryRequested(record, encoded)
        if not document.name:
            raise _not_a_signal(record, "it has no name")
        try:
            value = encode_msgpack(document.value)
        except NOT_ENCODABLE as error:
            raise _not_a_signal(record, f"its value cannot be one: {error}") from error
        signal = Signal(document.name, value, document.correlation, document.run, document.step)
        return index, SignalReceived(record, encoded, signal)

    def _place(self, agent: str | int) -> int | None:
        """Return the place of an agent; None: there is none, or it is not said which of several."""
        if isinstance(agent, int):
            return agent if 0 <= agent < len(self._agents) else None
        if not agent:
            return 0 if len(self._agents) == 1 else None
        return self._agents.index(agent) if agent in self._agents else None


def _not_a_signal(record: Record, why: str) -> DecodeError:
    return DecodeError(
        f"this is no signal: {why}",
        where={"record": record.run_id},
        expected='JSON such as {"key": "order-7", "name": "approval", "value": true}',
    )
