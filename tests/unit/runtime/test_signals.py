"""Laws of signals as documents: what is written is read as it was, and what is none is refused."""

from __future__ import annotations

import msgspec
import pytest

from agentflow.core.inputs import CancelRequested, RecordRejected, SignalReceived, WaitOrder
from agentflow.core.records import Record
from agentflow.core.waits import begin_wait, decode_wait, encode_wait
from agentflow.runtime.signals import SignalReader, encode_control, encode_signal, wait_of

ONE = SignalReader(["A"])
TWO = SignalReader(["A", "B"])


def record(document: bytes) -> Record:
    return Record("signals", 0, 1, document)


@pytest.mark.parametrize("key", ["k", "1", 1, 1.0, True, -(2**63), b"", b"k", b"\xff\x00", float("inf"), float("-inf")])
def test_a_key_is_read_as_it_was_written(key: object) -> None:
    _, read = ONE.read(record(encode_signal(key, "go")))
    assert isinstance(read, SignalReceived)
    assert read.key == msgspec.msgpack.encode(key)
    _, cancelled = ONE.read(record(encode_control(key, "cancel")))
    assert isinstance(cancelled, CancelRequested)
    assert cancelled.key == read.key


@pytest.mark.parametrize("key", ["null", "{}", '["k"]', '{"$bytes": "?"}', '{"$bytes": 1}', '{"$float": "nan"}'])
def test_what_is_no_key_is_refused(key: str) -> None:
    _, read = ONE.read(record(f'{{"key": {key}, "name": "go"}}'.encode()))
    assert isinstance(read, RecordRejected)


def test_an_agent_is_named_or_told_by_its_place() -> None:
    for agent, place in (("A", 0), ("B", 1), (0, 0), (1, 1)):
        assert TWO.read(record(encode_signal("k", "go", agent=agent)))[0] == place


@pytest.mark.parametrize("agent", ["", "C", 2, -1])
def test_a_signal_for_an_agent_that_is_not_there_is_dropped_and_the_log_says_so(
    agent: str | int, caplog: pytest.LogCaptureFixture
) -> None:
    assert TWO.read(record(encode_signal("k", "go", agent=agent))) is None
    assert f"(signal go) is dropped: its agent is {agent!r}; the job has A, B" in caplog.text


def test_a_signal_says_which_wait_it_is_for() -> None:
    document = encode_signal("k", "go", run="r/1", step="0:a.0")
    assert wait_of(document) == ("r/1", "0:a.0")
    _, read = ONE.read(record(document))
    assert isinstance(read, SignalReceived)
    assert (read.signal.run, read.signal.step) == ("r/1", "0:a.0")
    assert wait_of(encode_signal("k", "go")) == wait_of(b"no signal") == ("", "")


def test_a_wait_from_before_it_could_say_what_it_is_about_can_be_read() -> None:
    old = msgspec.msgpack.encode([5, "go", "c", 0, False, b""])
    assert decode_wait(old).about == b""
    wait = begin_wait(WaitOrder(None, "go", "c", b"\x01"), 0)
    assert decode_wait(encode_wait(wait)).about == b"\x01"
