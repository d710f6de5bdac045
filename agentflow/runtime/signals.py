"""Signals as they come in: one JSON document each, the same in a topic, in the spool of a state directory, and from code.

    {"key": "order-7", "name": "approval", "value": {"by": "ann"}, "correlation": "…", "run": "…", "agent": "…"}
    {"key": "order-7", "kind": "cancel", "reason": "…", "run": "…", "agent": "…"}
    {"key": "order-7", "kind": "retry", "agent": "…"}
    {"kind": "export", "request": "…"}

The last one is for the job itself: its state is wanted, for a savepoint that has every signal before this one. ``key`` and ``name`` have to be there (in a topic the record's key is the key where the document has none); ``correlation``, ``run``
and ``agent`` narrow it down: to waits with that correlation, to one run, to one agent of a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from agentflow.api.encoding import NOT_ENCODABLE, encode_json, encode_msgpack
from agentflow.core.inputs import CancelRequested, RecordRejected, RetryRequested, Signal, SignalReceived
from agentflow.core.records import ErrorReport, Record
from agentflow.errors import DecodeError
from agentflow.runtime.codecs import encode_key, encoded_key


class SignalDocument(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One signal as JSON."""

    name: str = ""
    key: Any | msgspec.UnsetType = msgspec.UNSET
    kind: Literal["signal", "cancel", "retry", "export"] = "signal"
    reason: str = ""
    value: Any = None
    correlation: str = ""
    run: str = ""
    agent: str = ""
    request: str = ""


_decode = msgspec.json.Decoder(SignalDocument).decode


def encode_signal(
    key: object, name: str, value: object = None, *, correlation: str = "", run: str = "", agent: str = ""
) -> bytes:
    """Return the document of a signal.

    Raises:
        TypeError: Key or value cannot be encoded, or another argument is no text.
        ValueError: It has no name.
    """
    if not name:
        msg = "a signal has a name"
        raise ValueError(msg)
    return _encoded(SignalDocument(name, key, value=value, correlation=correlation, run=run, agent=agent))


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
    try:
        encode_msgpack(signal.value)
        document = encode_json(signal)
        _decode(document)
    except (TypeError, *NOT_ENCODABLE) as error:
        msg = f"this cannot be a signal: {error}"
        raise TypeError(msg) from error
    return document


def encode_export(request: str) -> bytes:
    """Return the document that asks a job for its state, by the id of who waits for it."""
    return encode_json(SignalDocument(kind="export", request=request))


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

    def read(self, record: Record) -> tuple[int, Control]:
        """Return whom it is for, as the agent's place in the chain, and what it says; rejected: it is no signal, or for nobody."""
        try:
            return self._read(record)
        except DecodeError as error:
            return 0, RecordRejected(record, ErrorReport(type(error).__name__, error.what, is_retryable=False))

    def _read(self, record: Record) -> tuple[int, Control]:
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
        if not document.agent and len(self._agents) > 1:
            raise _not_a_signal(
                record, f"the job has several agents ({', '.join(self._agents)}): say which, as 'agent'"
            )
        if document.agent and document.agent not in self._agents:
            raise _not_a_signal(record, f"there is no agent '{document.agent}', only {', '.join(self._agents)}")
        index = self._agents.index(document.agent) if document.agent else 0
        try:
            encoded = encode_key(key)
        except (TypeError, *NOT_ENCODABLE) as error:
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
        signal = Signal(document.name, value, document.correlation, document.run)
        return index, SignalReceived(record, encoded, signal)


def _not_a_signal(record: Record, why: str) -> DecodeError:
    return DecodeError(
        f"this is no signal: {why}",
        where={"record": record.run_id},
        expected='JSON such as {"key": "order-7", "name": "approval", "value": true}',
    )
