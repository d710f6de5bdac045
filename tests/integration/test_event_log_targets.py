"""Where records go: files that rotate, standard output, OpenTelemetry, listeners; and that no target stops or slows a job."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from agentflow import Agent, AgentsExecutionEnvironment, EventType, OutputEvent
from agentflow.errors import ConfigError
from agentflow.observability.event_log_buffer import BufferedTarget, Chunk
from agentflow.observability.event_log_files import LogFiles, log_files
from agentflow.observability.event_log_targets import OtelLogs, StdoutLines, records_of
from agentflow.runtime.settings import (
    EventLogSettings,
    JobSettings,
    OtlpSettings,
    RedactionSettings,
    RetentionSettings,
    RotationSettings,
)
from agentflow.testing.conformance.record_target import record
from tests.event_log_world import World
from tests.otlp_receiver import attributes_of, collector, plain
from tests.unit.connectors.test_sink_full_disk import fill, small_disk  # noqa: F401 (a fixture)


def echo() -> Agent:
    def act(event, ctx):
        ctx.send_event(OutputEvent(event.input))

    return Agent("A").add_action("act", [EventType.InputEvent], act)


VALUES = [{"k": f"k{number % 3}", "n": number} for number in range(40)]


def files_with(tmp_path, **options):
    return LogFiles("job", EventLogSettings(dir=str(tmp_path), **options))


def ids(path: Path) -> list[int]:
    return [int(msgspec.json.decode(line)["eventId"]) for line in path.read_bytes().splitlines()]


# -- files
def test_a_file_that_is_full_is_followed_by_the_next_and_names_sort_as_records_do(tmp_path):
    target = files_with(tmp_path, rotation=RotationSettings(size_bytes=3 * len(record(1))))
    for number in range(10):
        target.write(0, [record(number)])
    target.close()
    files = log_files(tmp_path, "job")
    assert [ids(path) for path in files] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert files == sorted(tmp_path.iterdir())


def test_a_portion_that_is_larger_than_a_file_is_not_torn(tmp_path):
    target = files_with(tmp_path, rotation=RotationSettings(size_bytes=10))
    target.write(0, [record(1) + record(2)])
    target.write(0, [record(3)])
    assert [ids(path) for path in log_files(tmp_path, "job")] == [[1, 2], [3]]


def test_an_old_file_is_followed_by_the_next(tmp_path):
    target = files_with(tmp_path, rotation=RotationSettings(age_ms=60_000))
    target.write(0, [record(1)])
    target._open[0].begun -= 61
    target.write(0, [record(2)])
    assert len(log_files(tmp_path, "job")) == 2


def test_subtasks_and_jobs_have_files_of_their_own(tmp_path):
    one, other = files_with(tmp_path), LogFiles("job-1", EventLogSettings(dir=str(tmp_path)))
    one.write(0, [record(1)])
    one.write(10, [record(2)])
    other.write(0, [record(3)])
    assert [ids(path) for path in log_files(tmp_path, "job")] == [[1], [2]]
    assert [ids(path) for path in log_files(tmp_path, "job", 10)] == [[2]]
    assert [ids(path) for path in log_files(tmp_path, "job-1")] == [[3]]


def test_two_owners_of_a_subtask_have_a_file_each_in_order(tmp_path):
    owners = [files_with(tmp_path), files_with(tmp_path)]
    for number, owner in enumerate(owners * 2):
        owner.write(0, [record(number)])
    assert [ids(path) for path in log_files(tmp_path, "job")] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        ({"files": 2}, [[3], [4]]),
        ({"size_bytes": 3 * len(record(0)), "files": None}, [[2], [3], [4]]),
        ({"files": 1}, [[4]]),
    ],
)
def test_old_files_are_deleted_by_number_and_size(tmp_path, retention, kept):
    target = files_with(tmp_path, rotation=RotationSettings(size_bytes=1), retention=RetentionSettings(**retention))
    for number in range(5):
        target.write(0, [record(number)])
    assert [ids(path) for path in log_files(tmp_path, "job")] == kept


def test_files_are_deleted_by_age_but_not_the_one_that_is_written(tmp_path):
    target = files_with(
        tmp_path, rotation=RotationSettings(size_bytes=1), retention=RetentionSettings(files=None, age_ms=60_000)
    )
    for number in range(3):
        target.write(0, [record(number)])
    for path in log_files(tmp_path, "job"):
        os.utime(path, (time.time() - 100, time.time() - 100))
    target.tend()
    assert [ids(path) for path in log_files(tmp_path, "job")] == [[2]]


def test_files_of_other_subtasks_are_left_alone(tmp_path):
    (tmp_path / "events-job-1.20200101T000000000.log").write_text("")
    (tmp_path / "notes.txt").write_text("")
    target = files_with(tmp_path, rotation=RotationSettings(size_bytes=1), retention=RetentionSettings(files=1))
    for number in range(3):
        target.write(0, [record(number)])
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_that_somebody_deletes_is_followed_by_a_new_one(tmp_path):
    target = files_with(tmp_path)
    target.write(0, [record(1)])
    log_files(tmp_path, "job")[0].unlink()
    target.write(0, [record(2)])
    assert [ids(path) for path in log_files(tmp_path, "job")] == [[2]]


def test_a_clock_that_was_ahead_does_not_turn_the_order_round(tmp_path):
    (tmp_path / "events-job-0.29990101T000000999.log").write_bytes(record(1))
    target = files_with(tmp_path)
    target.write(0, [record(2)])
    assert [ids(path) for path in log_files(tmp_path, "job")] == [[1], [2]]


# -- a disk that is full
def test_a_full_disk_tears_no_line_and_is_written_again_when_there_is_room(small_disk):  # noqa: F811 (a fixture)
    target = files_with(small_disk / "logs")
    target.write(0, [record(1)])
    filler = fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        target.write(0, [record(number) for number in range(2, 20_000)])
    (path,) = log_files(small_disk / "logs", "job")
    assert ids(path) == [1]
    filler.unlink()
    target.write(0, [record(2)])
    target.close()
    assert ids(path) == [1, 2]


def test_a_job_runs_to_its_end_on_a_full_disk_and_says_what_is_lost(small_disk, caplog):  # noqa: F811 (a fixture)
    world = World(small_disk, echo())
    world.directory.mkdir(parents=True)
    filler = fill(small_disk)
    assert world.run(VALUES) == []
    assert world.outputs == VALUES
    said = caplog.text
    assert "event log cannot be written" in said
    assert "event log lost records" in said
    assert "No space left" in said
    filler.unlink()


# -- a target that is slow, or does not work
class Stuck:
    """A target that waits until it is let go."""

    name = "stuck"

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.written = 0

    def write(self, subtask, lines):
        assert self.may_go.wait(30)
        self.written += sum(some.count(b"\n") for some in lines)

    def tend(self):
        pass

    def close(self):
        pass


def chunk(number=0, subtask=0):
    return Chunk(subtask, [record(number)], [], 1)


def test_what_a_slow_target_has_no_room_for_is_dropped_counted_and_told_once_in_a_while():
    told, target = [], Stuck()
    buffered = BufferedTarget(target, 10 * len(record(0)), 0.001, lambda what, fields: told.append((what, fields)))
    for number in range(1_000):
        buffered.add(chunk(number % 10))
    lost = buffered.counts.dropped
    assert lost >= 980
    assert told[0] == ("event log lost records", {"target": "stuck", "lost": 1, "lost_in_all": 1})
    assert len(told) == 1
    target.may_go.set()
    buffered.close()
    assert target.written + lost == 1_000
    assert buffered.counts.written == target.written
    assert told[1] == ("event log lost records", {"target": "stuck", "lost": lost - 1, "lost_in_all": lost})


class Refusing:
    """A target that refuses some times, and then takes what it gets."""

    name = "refusing"

    def __init__(self, times):
        self.times = times
        self.calls = 0
        self.lines = b""
        self.has_taken = threading.Event()

    def write(self, subtask, lines):
        self.calls += 1
        if self.calls <= self.times:
            raise ConnectionError("away")
        self.lines += b"".join(lines)
        self.has_taken.set()

    def tend(self):
        pass

    def close(self):
        pass


def test_a_target_that_refuses_is_asked_again_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr("agentflow.observability.event_log_buffer._AGAIN_S", 0.001)
    told, target = [], Refusing(3)
    buffered = BufferedTarget(target, 2**20, 0.001, lambda what, fields: told.append((what, fields)))
    buffered.add(chunk(1))
    assert target.has_taken.wait(30)
    buffered.close()
    assert (target.lines, buffered.counts.failed, buffered.counts.written) == (record(1), 0, 1)
    assert told == [("event log cannot be written", {"target": "refusing", "error": "ConnectionError: away"})]


def test_what_a_target_refuses_for_long_is_lost_and_told():
    told, target = [], Refusing(10**9)
    buffered = BufferedTarget(target, 2**20, 0.001, lambda what, fields: told.append((what, fields)))
    buffered.add(chunk(1))
    buffered.close()
    assert (buffered.counts.failed, buffered.counts.written) == (1, 0)
    assert told[-1][0] == "event log lost records"
    assert told[-1][1]["error"] == "ConnectionError: away"


class RefusingThenStuck(Stuck):
    """A target that refuses, and then does not answer."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.is_asked_again = threading.Event()

    def write(self, subtask, lines):
        self.calls += 1
        if self.calls == 1:
            raise ConnectionError("away")
        self.is_asked_again.set()
        super().write(subtask, lines)


def test_a_target_that_has_refused_and_does_not_answer_holds_up_the_end_for_a_moment_only(monkeypatch):
    monkeypatch.setattr("agentflow.observability.event_log_buffer._AGAIN_S", 0.001)
    monkeypatch.setattr("agentflow.observability.event_log_buffer._CLOSED_DOWN_WITHIN_S", 0.01)
    target = RefusingThenStuck()
    buffered = BufferedTarget(target, 2**20, 0.001, lambda what, fields: None)
    buffered.add(chunk())
    assert target.is_asked_again.wait(30)
    began = time.monotonic()
    buffered.close()
    assert time.monotonic() - began < 5
    target.may_go.set()


def test_records_of_each_subtask_keep_their_order():
    target = Refusing(0)
    buffered = BufferedTarget(target, 2**20, 60, print)
    for number in range(50):
        buffered.add(chunk(number, number % 2))
    buffered.close()
    found = [int(msgspec.json.decode(line)["eventId"]) for line in target.lines.splitlines()]
    assert [number for number in found if number % 2 == 0] == list(range(0, 50, 2))
    assert [number for number in found if number % 2 == 1] == list(range(1, 50, 2))


# -- OpenTelemetry
def test_records_are_posted_as_opentelemetry_logs(tmp_path):
    def act(event, ctx):
        ctx.send_event(OutputEvent({"list": [1, None, 2.5], "none": None, "big": 2**64 - 1, "text": "ü"}))
        if event.input["n"] == 1:
            raise KeyError("stars")

    agent = Agent("A").add_action("act", [EventType.InputEvent], act, on_error="skip", retry=None)
    with collector() as received:
        world = World(tmp_path, agent, target=("otel",), settings={"otlp": OtlpSettings(received.endpoint)}, trace=True)
        world.run([{"k": "a", "n": 0}, {"k": 5, "n": 1}])
    records = [(resource, one, attributes_of(one.attributes)) for resource, one in received.records]
    assert {(resource["service.name"], resource["agentflow.job"]) for resource, _, _ in records} == {("test", "test")}
    by_id = {attributes["agentflow.event.id"]: (one, attributes) for _, one, attributes in records}
    one, attributes = by_id["list/0/0:act/0"]
    assert one.event_name == "_output_event"
    assert plain(one.body) == {"output": {"list": [1, "null", 2.5], "big": str(2**64 - 1), "text": "ü"}}
    assert attributes["agentflow.run.id"] == "list/0"
    assert attributes["agentflow.event.upstream.id"] == "list/0/0"
    assert attributes["agentflow.execution.id"] == "list/0/0:act#1"
    assert one.severity_text == "INFO"
    assert abs(one.time_unix_nano / 1e9 - time.time()) < 60
    skipped, attributes = by_id["list/1/0:act:skipped"]
    assert (skipped.severity_text, attributes["agentflow.status"], attributes["agentflow.key"]) == (
        "WARN",
        "skipped",
        5,
    )
    assert by_id["list/1/0:act#1:failed"][0].severity_text == "ERROR"


def test_a_collector_that_refuses_stops_nothing(tmp_path, caplog):
    with collector() as received:
        received.status = 400
        world = World(tmp_path, echo(), target=("otel", "file"), settings={"otlp": OtlpSettings(received.endpoint)})
        assert len(world.run(VALUES)) == 2 * len(VALUES)
        assert world.outputs == VALUES
    assert "the collector has not taken the records" in caplog.text


def test_a_record_that_cannot_be_read_keeps_no_other_back(caplog):
    with collector() as received:
        OtelLogs("job", received.endpoint).write(0, [record(1) + b"{torn\n[]\n{}\n", record(2)])
    assert [attributes_of(one.attributes)["agentflow.event.id"] for _, one in received.records] == ["1", "2"]
    assert caplog.text.count("event log left out a record") == 1


def test_a_collector_that_is_away_is_asked_once_by_each_write():
    with collector() as received:
        pass
    with pytest.raises(OSError, match=r"the collector has not taken the records: .*refused"):
        OtelLogs("job", received.endpoint).write(0, [record(1)])


def test_a_collector_that_is_no_url_is_refused():
    with pytest.raises(ConfigError, match="a collector is named by a URL"):
        OtelLogs("job", "collector")


def test_only_a_line_feed_ends_a_record():
    assert list(records_of([b'{"a":\r1}\n{"b":"\xe2\x80\xa8"}\n', b"{}\n"])) == [
        b'{"a":\r1}', b'{"b":"\xe2\x80\xa8"}', b"{}",
    ]  # fmt: skip


# -- standard output
def test_records_go_to_a_standard_output_that_takes_texts_only(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    target = StdoutLines()
    target.write(0, [record(1), record(2)])
    assert sys.stdout.getvalue().encode() == record(1) + record(2)


def test_several_targets_get_the_same_records(tmp_path, monkeypatch):
    stream = io.BytesIO()

    class Console:
        buffer = stream

    monkeypatch.setattr(sys, "stdout", Console())
    records = World(tmp_path, echo(), target=("stdout", "file", "stdout")).run(VALUES)
    monkeypatch.undo()
    assert [msgspec.json.decode(line) for line in stream.getvalue().splitlines()] == records
    assert len(records) == 2 * len(VALUES)


# -- listeners
def environment(**settings) -> AgentsExecutionEnvironment:
    env = AgentsExecutionEnvironment.get_execution_environment(JobSettings(**settings))
    env.from_list(VALUES).key_by("k").apply(echo()).to_list()
    return env


def test_listeners_are_told_of_every_record_in_order_redacted_where_nothing_is_written():
    heard: list[dict] = []
    threads = set()

    def listen(record):
        heard.append(record)
        threads.add(threading.current_thread().name)

    env = environment(redaction=RedactionSettings(fields=("n",)))
    assert env.add_event_listener(listen) is env
    env.execute()
    assert [(one["eventId"], one["eventAttributes"]) for one in heard[:2]] == [
        ("list/0/0", {"input": {"k": "k0", "n": "***"}}),
        ("list/0/0:act/0", {"output": {"k": "k0", "n": "***"}}),
    ]
    assert [one["inputRunId"] for one in heard if one["eventType"] == "_input_event"] == [
        f"list/{n}" for n in range(len(VALUES))
    ]
    assert threads == {"agentflow-event-log-listeners"}
    assert not Path("logs").exists()


def test_a_listener_that_raises_is_told_and_keeps_nobody_from_anything(caplog):
    heard = []

    def broken(record):
        record.clear()
        raise ValueError("no\nmore")

    environment().add_event_listener(broken).add_event_listener(heard.append).execute()
    assert len(heard) == 2 * len(VALUES)
    assert all("eventId" in one for one in heard)
    said = caplog.text
    assert said.count("event listener failed") == 1
    assert "ValueError: no" in said


def test_a_job_waits_for_no_listener(tmp_path, monkeypatch):
    monkeypatch.setattr("agentflow.observability.event_log_buffer._CLOSED_WITHIN_S", 0.05)
    may_go = threading.Event()
    env = environment()
    env.add_event_listener(lambda record: may_go.wait(30))
    began = time.monotonic()
    assert env.execute().records_in == len(VALUES)
    assert time.monotonic() - began < 10
    may_go.set()


def test_what_is_no_listener_is_refused():
    async def later(record):
        """Nobody would await it."""

    env = environment()
    with pytest.raises(TypeError, match="a function of a record, not str"):
        env.add_event_listener("shop:audit")
    with pytest.raises(TypeError, match="is a coroutine function"):
        env.add_event_listener(later)


def test_rules_that_cannot_be_read_stop_a_job_before_it_starts():
    with pytest.raises(ConfigError, match="no regular expression"):
        environment(event_log=EventLogSettings(level="standard"), redaction=RedactionSettings(patterns=("(",))).job()


def test_counts_say_what_became_of_records(tmp_path):
    from agentflow.environment.telemetry import Telemetry

    telemetry = Telemetry(JobSettings(event_log=EventLogSettings(level="standard", dir=str(tmp_path))))
    assert telemetry.event_log is not None
    (name, counts), *_ = telemetry.event_log.event_log.counts.items()
    assert (name, counts.written, counts.dropped, counts.failed) == ("file", 0, 0, 0)
    assert json.dumps(telemetry.event_log.event_log.truncated) == "0"
