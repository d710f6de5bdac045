"""Log lines: one per call, plain or JSON, for the engine, for agents and for other packages."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys

import pytest
import structlog

from agentflow.core.effects import DeadLetter
from agentflow.core.records import ErrorReport, Record
from agentflow.observability.logs import DeadLetterLog, configure_logs, log_event
from agentflow.runtime.logs import take_lines
from agentflow.runtime.ports import Guarantee, Staged


@pytest.fixture(autouse=True)
def _as_it_was():
    root = logging.getLogger()
    handlers, level, own = list(root.handlers), root.level, logging.getLogger("agentflow").level
    yield
    structlog.reset_defaults()
    take_lines(None)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("agentflow").setLevel(own)


def configured(form: str = "console", level: str = "info", **options) -> io.StringIO:
    stream = io.StringIO()
    configure_logs(format=form, level=level, stream=stream, **options)
    return stream


def without_time(text: str) -> list[str]:
    return [line.partition(" ")[2] for line in text.splitlines()]


def test_line_has_time_level_event_and_fields():
    stream = configured()
    log_event("job started", job="reviews", records=3, path="a b", missing=None)
    time, _, rest = stream.getvalue().partition(" ")
    assert rest == 'info    job started  job=reviews  records=3  path="a b"\n'
    assert time.endswith("Z")
    assert len(time) == len("2025-01-01T12:00:00.123Z")


def test_line_break_in_a_field_stays_in_one_line():
    stream = configured()
    log_event("two\nlines", text="a\nb")
    assert without_time(stream.getvalue()) == ['info    two\\nlines  text="a\\nb"']


def test_json_line_is_one_object_with_time_level_and_event_first():
    stream = configured("json")
    log_event("restart", "warning", attempt=2, odd={1})
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert list(fields)[:3] == ["timestamp", "level", "event"]
    assert (fields["level"], fields["event"], fields["attempt"]) == ("warning", "restart", 2)
    assert fields["odd"] == [1]


def test_json_shows_what_json_has_not():
    stream = configured("json")
    log_event("odd", value=object)
    assert json.loads(stream.getvalue())["value"] == "<class 'object'>"


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level_is_the_least_that_is_shown(level, shown):
    stream = configured(level=level)
    for each in ("debug", "info", "warning", "error"):
        log_event(each, each)
    assert len(stream.getvalue().splitlines()) == shown


def test_other_packages_are_shown_from_warning():
    stream = configured()
    logging.getLogger("httpx").info("a request")
    logging.getLogger("httpx").warning("a slow %s", "request")
    logging.getLogger("agentflow.runtime").info("own")
    assert without_time(stream.getvalue()) == [
        "warning a slow request  logger=httpx",
        "info    own  logger=agentflow.runtime",
    ]


def test_other_packages_are_shown_whole_at_debug():
    stream = configured(level="debug")
    logging.getLogger("a_library").debug("details")
    assert without_time(stream.getvalue()) == ["debug   details  logger=a_library"]


def test_traceback_follows_its_line():
    stream = configured()
    try:
        raise KeyError("stars")
    except KeyError:
        structlog.get_logger().exception("failed")
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith(" error   failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyError: 'stars'"


def test_colour_marks_the_level_only_when_wanted():
    assert "\x1b[" not in _one_line(is_colored=False)
    assert "\x1b[32minfo   \x1b[0m" in _one_line(is_colored=True)


def _one_line(**options) -> str:
    stream = configured(**options)
    log_event("x")
    return stream.getvalue()


def test_import_configures_nothing():
    code = (
        "import logging, structlog\n"
        "import agentflow.observability.logs\n"
        "print(structlog.is_configured(), logging.getLogger().handlers)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False []\n"


class Shelf:
    """A real sink, in memory."""

    name = "shelf"
    guarantee = Guarantee.AT_LEAST_ONCE
    record_max_bytes = None

    def __init__(self) -> None:
        self.calls: list[object] = []

    async def open(self, prepared):
        self.calls.append(("open", prepared))

    def write(self, record):
        self.calls.append(record)

    def barrier(self, checkpoint):
        self.calls.append(("barrier", checkpoint))

    async def stage(self, checkpoint):
        self.calls.append(("stage", checkpoint))
        return Staged(("a",))

    async def publish(self, checkpoint, staged):
        self.calls.append(("publish", checkpoint, staged))

    async def close(self):
        self.calls.append("close")


def letter(number: int) -> DeadLetter:
    record = Record("in.jsonl", number, number + 1, b"{}")
    return DeadLetter(
        record, ErrorReport("KeyError", "'stars'"), {"action": "score", "attempt": "3", "job": "x"}, b"{}"
    )


def test_dead_letter_is_told_and_given_on():
    stream, shelf = configured(), Shelf()
    log = DeadLetterLog(shelf, "jsonl dead/")
    log.write(letter(7))
    assert without_time(stream.getvalue()) == [
        'warning dead letter  record=in.jsonl/7  action=score  attempt=3  error="KeyError: \'stars\'"  to="jsonl dead/"'
    ]
    assert shelf.calls == [letter(7)]


def test_dead_letters_beyond_the_limit_are_counted_in_the_next_line():
    times = [0.0]
    stream = configured()
    log = DeadLetterLog(Shelf(), "dead", lines_max=2, window_s=10, now=lambda: times[0])
    for number in range(5):
        log.write(letter(number))
    times[0] = 10.0
    log.write(letter(5))
    lines = stream.getvalue().splitlines()
    assert [line.partition("record=")[2].partition(" ")[0] for line in lines] == [
        "in.jsonl/0",
        "in.jsonl/1",
        "in.jsonl/5",
    ]
    assert lines[-1].endswith("not_shown=3")


def test_dead_letter_log_is_the_sink_it_stands_before():
    shelf = Shelf()
    log = DeadLetterLog(shelf, "dead")

    async def life() -> Staged:
        await log.open(None)
        log.barrier(1)
        staged = await log.stage(1)
        await log.publish(1, staged)
        await log.close()
        return staged

    assert asyncio.run(life()) == Staged(("a",))
    assert (log.name, log.guarantee) == ("shelf", Guarantee.AT_LEAST_ONCE)
    assert shelf.calls == [("open", None), ("barrier", 1), ("stage", 1), ("publish", 1, Staged(("a",))), "close"]


def test_exporters_of_opentelemetry_say_only_why_they_gave_up_and_rarely():
    stream = configured()
    exporter = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for _ in range(3):
        exporter.warning("Transient error %s encountered", "refused")
        exporter.error("Failed to export %s batch code: %s", "spans", 401)
    assert without_time(stream.getvalue()) == [
        f'error   "Failed to export spans batch code: 401"  logger={exporter.name}'.replace('"', "")
    ]
