"""Exporters: what a file, Prometheus and a collector are shown, and what happens where nobody takes it."""

from __future__ import annotations

import json
import logging
import math
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from decimal import Decimal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentflow.api.metrics import OVERFLOW, Buckets, MetricRegistry
from agentflow.errors import ConfigError
from agentflow.observability import exporting, names
from agentflow.observability.admin import AdminServer
from agentflow.observability.exporting import MetricsFile, Pusher, Reachability
from agentflow.observability.metrics import JobMetrics
from agentflow.observability.otel import resource_of
from agentflow.observability.otel_metrics import MetricsEncoder, OtlpMetrics, PrometheusText
from agentflow.observability.otlp import OtlpSender, endpoint_of
from agentflow.observability.series import Series
from agentflow.runtime.settings import MetricsSettings
from tests.otlp_receiver import collector


def buckets(*numbers: float) -> Buckets:
    found = Buckets((0.001, 1))
    for number in numbers:
        found.add(number)
    return found


def samples(count: int = 3) -> list[Series]:
    return [
        Series(names.RECORDS_IN, [({"job": "j"}, count)]),
        Series(names.CHECKPOINT_DURATION, [({"job": "j", "subtask": "0"}, 0.25)]),
        Series(
            names.ACTION_DURATION,
            [({"job": "j", "action": "act"}, buckets(*[0.5] * count)), ({"job": "j", **dict(OVERFLOW)}, buckets(2))],
        ),
    ]


# -- the file
def test_file_holds_one_whole_document_that_is_replaced(tmp_path):
    file = MetricsFile(str(tmp_path / "deep" / "m.json"))
    file.push(samples(1))
    file.push(samples(2))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m.json"]
    document = json.loads((tmp_path / "deep" / "m.json").read_text())
    by_name = {metric["name"]: metric for metric in document["metrics"]}
    assert by_name["agentflow.records.in"] == {
        "name": "agentflow.records.in",
        "kind": "counter",
        "unit": "{record}",
        "points": [{"attributes": {"job": "j"}, "value": 2}],
    }
    assert by_name["agentflow.action.duration"]["points"][0] == {
        "attributes": {"job": "j", "action": "act"},
        "count": 2,
        "sum": 1.0,
        "bounds": [0.001, 1],
        "counts": [0, 2, 0],
    }
    assert document["time"].endswith("Z")


def test_jsonl_file_gets_a_line_more_and_is_put_aside_when_it_is_large(tmp_path, monkeypatch):
    file = MetricsFile(str(tmp_path / "m.jsonl"))
    file.push(samples(1))
    file.push(samples(2))
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"][0]["points"][0]["value"] for line in lines] == [1, 2]
    monkeypatch.setattr(exporting, "_FILE_BYTES_MAX", 10)
    file.push(samples(3))
    file.push(samples(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl.1"]
    assert len((tmp_path / "m.jsonl.1").read_text().splitlines()) == 1


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """Return the fields of the engine's lines."""
    return [{"level": record.levelname, **record.agentflow} for record in caplog.records]


class Lines(logging.Handler):
    """Says that a line came."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.came.set()


def test_file_that_cannot_be_written_is_refused_at_start_and_told_later(tmp_path, caplog):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"metrics.file: .* cannot be written"):
        MetricsFile(str(tmp_path / "taken" / "m.json"))
    file = MetricsFile(str(tmp_path / "there" / "m.json"))
    (tmp_path / "there" / "m.json").unlink()
    (tmp_path / "there").rmdir()
    file.push(samples())
    file.push(samples())
    ((line),) = told(caplog)
    assert (line["level"], line["to"]) == ("WARNING", str(tmp_path / "there" / "m.json"))
    assert "No such file" in str(line["reason"])


# -- a place that does not answer
def test_unreachable_place_is_told_once_in_a_while_and_when_it_is_back(caplog):
    caplog.set_level("INFO", "agentflow")
    now = [0.0]
    place = Reachability("metrics", "http://x", now=lambda: now[0])
    for second in range(0, 700, 10):
        now[0] = second
        place.tell(is_sent=False)
    place.tell(is_sent=True)
    place.tell(is_sent=True)
    assert [(line["level"], line["failures"]) for line in told(caplog)] == [
        ("WARNING", 1),
        ("WARNING", 31),
        ("WARNING", 61),
        ("INFO", 70),
    ]


class Place:
    """A destination that hangs until it is told to stop."""

    def __init__(self, *, is_hanging: bool) -> None:
        self.reachability = Reachability("metrics", "there")
        self.pushed: list[int] = []
        self.may_end = threading.Event()
        if not is_hanging:
            self.may_end.set()

    def push(self, series):
        self.pushed.append(len(series))
        self.may_end.wait()


def test_pusher_pushes_at_its_end():
    place = Place(is_hanging=False)
    Pusher(samples, place, 3_600_000).close()
    assert place.pushed == [3]


def test_pusher_pushes_on_behind_a_push_that_raised(caplog):
    place = Place(is_hanging=False)
    calls: list[int] = []
    is_pushed = threading.Event()

    def collect() -> list[Series]:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("odd")
        is_pushed.set()
        return samples()

    pusher = Pusher(collect, place, 1)
    assert is_pushed.wait(20)
    pusher.close()
    assert place.pushed[0] == 3
    assert told(caplog)[0]["reason"] == "LookupError: odd"


# -- values that nobody expected
class Count(int):
    """An integer of another package."""


def test_odd_values_are_exported_everywhere_and_what_is_no_number_is_left_out_alone(no_variables, tmp_path, caplog):
    registry = MetricRegistry()
    group = registry.group("A")
    group.get_gauge("large").update(2**70)
    group.get_gauge("beyond").update(-(10**400))
    group.get_counter("many").inc(2**63)
    group.get_counter("own").inc(Count(3))
    group.get_counter("decimal").inc(Decimal("0.5"))  # type: ignore[arg-type]
    group.get_histogram("spread").update(2**70)
    group.get_sub_group("tenant", "a\ud800").get_counter("of_tenant").inc()
    metrics = JobMetrics("j", MetricsSettings(), registry)
    metrics.observe(names.LAG, lambda: [("much", {}), (7, {"partition": "1"})])  # type: ignore[list-item]
    metrics.observe(names.REBALANCES, lambda: [(1 // 0, {})])
    with collector() as seen:
        OtlpMetrics(resource_of("j"), seen.endpoint).push(metrics.collect())
        assert seen.value("agentflow.user.large") == 2.0**70
        assert seen.value("agentflow.user.beyond") == -math.inf
        assert seen.value("agentflow.user.many") == 2.0**63
        assert seen.value("agentflow.user.own") == 3
        assert seen.value("agentflow.user.decimal") == 0.5
        assert seen.value("agentflow.user.of_tenant", tenant="a\\ud800") == 1
        assert seen.value("agentflow.lag", partition="1") == 7
        assert len(seen.metrics["agentflow.lag"]) == 1
    text = PrometheusText(resource_of("j")).text(metrics.collect()).decode()
    assert str(2.0**70) in text
    file = MetricsFile(str(tmp_path / "m.json"))
    file.push(metrics.collect())
    by_name = {one["name"]: one for one in json.loads((tmp_path / "m.json").read_text())["metrics"]}
    assert by_name["agentflow.user.spread"]["points"][0]["sum"] == 2.0**70
    assert [line["reason"].partition(": ")[0] for line in told(caplog)] == ["agentflow.lag"]


def test_server_answers_500_where_metrics_cannot_be_collected_and_lives_on(caplog):
    bodies: list[Exception | bytes] = [LookupError("odd"), b"fine"]

    def metrics() -> bytes:
        body = bodies.pop(0)
        if isinstance(body, Exception):
            raise body
        return body

    server = AdminServer("127.0.0.1", 0, lambda: True, lambda: None, metrics)
    try:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"http://{server.address}/metrics")
        with urllib.request.urlopen(f"http://{server.address}/metrics") as answer:
            assert answer.read() == b"fine"
    finally:
        server.close()
    assert [line["reason"] for line in told(caplog)] == ["LookupError: odd"]


def test_a_client_that_resets_its_connection_is_a_line_at_debug_and_no_traceback(caplog, capfd):
    caplog.set_level(logging.DEBUG, logger="agentflow.engine")
    lines = Lines()
    logging.getLogger("agentflow.engine").addHandler(lines)
    server = AdminServer("127.0.0.1", 0, lambda: True, lambda: None, lambda: b"")
    try:
        host, _, port = server.address.partition(":")
        client = socket.create_connection((host, int(port)))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert lines.came.wait(10)
    finally:
        server.close()
        logging.getLogger("agentflow.engine").removeHandler(lines)
    (line,) = told(caplog)
    assert (line["level"], line["reason"].partition("(")[0]) == ("DEBUG", "ConnectionResetError")
    assert capfd.readouterr().err == ""


def test_a_place_that_hangs_holds_up_the_end_for_a_moment_only(monkeypatch):
    monkeypatch.setattr(exporting, "_LAST_PUSH_S", 0.05)
    place = Place(is_hanging=True)
    pusher = Pusher(samples, place, 3_600_000)
    began = time.monotonic()
    pusher.close()
    assert time.monotonic() - began < 2
    assert place.pushed == [3]
    place.may_end.set()


# -- Prometheus
def test_prometheus_text_is_parsed_with_units_in_names():
    prometheus = PrometheusText(resource_of("reviews"))
    for _ in range(2):  # a scrape leaves nothing behind
        text = prometheus.text(samples()).decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["agentflow_records_in"].type == "counter"
    assert [sample.value for sample in families["agentflow_records_in"].samples] == [3]
    (duration,) = families["agentflow_checkpoint_duration_seconds"].samples
    assert (duration.value, duration.labels) == (0.25, {"job": "j", "subtask": "0"})
    histogram = families["agentflow_action_duration_seconds"]
    assert histogram.type == "histogram"
    of_action = {
        (sample.name.removeprefix(histogram.name), sample.labels.get("le")): sample.value
        for sample in histogram.samples
        if sample.labels["action"] == "act"
    }
    assert of_action == {
        ("_bucket", "0.001"): 0,
        ("_bucket", "1.0"): 3,
        ("_bucket", "+Inf"): 3,
        ("_count", None): 3,
        ("_sum", None): 1.5,
    }
    overflow = [sample for sample in histogram.samples if sample.labels["otel_metric_overflow"] == "true"]
    assert len(overflow) == 5
    (target,) = families["target_info"].samples
    assert (target.labels["service_name"], target.labels["agentflow_job"]) == ("reviews", "reviews")


# -- a collector
@pytest.fixture
def no_variables(monkeypatch):
    for name in ("ENDPOINT", "METRICS_ENDPOINT", "METRICS_TEMPORALITY_PREFERENCE", "HEADERS", "TIMEOUT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_collector_gets_metrics_with_their_kinds_and_units(no_variables):
    with collector() as seen:
        otlp = OtlpMetrics(resource_of("reviews"), seen.endpoint)
        otlp.push(samples())
        assert seen.value("agentflow.records.in", job="j") == 3
        assert seen.value("agentflow.checkpoint.duration") == 0.25
        (_, first), (_, other) = seen.metrics["agentflow.action.duration"]
        assert (first.count, first.sum, list(first.bucket_counts), list(first.explicit_bounds)) == (
            3, 1.5, [0, 3, 0], [0.001, 1.0],
        )  # fmt: skip
        assert not first.HasField("min")
        assert list(other.bucket_counts) == [0, 0, 1]
        assert seen.resource["service.name"] == "reviews"
        assert not otlp.reachability.is_down


def test_standard_variables_say_where_the_collector_is_and_who_we_are(no_variables):
    assert endpoint_of(None, "metrics") == "http://localhost:4318/v1/metrics"
    no_variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://there:1/base/")
    assert endpoint_of(None, "metrics") == "http://there:1/base/v1/metrics"
    assert endpoint_of("http://here:2", "metrics") == "http://here:2/v1/metrics"
    no_variables.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://own:3/x")
    assert endpoint_of(None, "metrics") == "http://own:3/x"
    assert endpoint_of(None, "traces") == "http://there:1/base/v1/traces"
    no_variables.setenv("OTEL_SERVICE_NAME", "shop")
    assert resource_of("reviews").attributes["service.name"] == "shop"


def test_headers_come_from_the_standard_variable(no_variables):
    no_variables.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=abc")
    with collector() as seen:
        otlp = OtlpMetrics(resource_of("reviews"), seen.endpoint)
        otlp.push(samples())
        assert {name.lower(): value for name, value in seen.headers.items()}["x-token"] == "abc"


def test_delta_says_what_came_since_the_last_push_that_was_taken():
    encoder = MetricsEncoder(resource_of("reviews"), is_delta=True)

    def numbers(count: int) -> list[object]:
        metrics = encoder.encode(samples(count)).resource_metrics[0].scope_metrics[0].metrics
        (records,), (gauge,), (histogram, other) = (metric.data.data_points for metric in metrics)
        return [records.value, gauge.value, histogram.bucket_counts, histogram.sum, other.count]

    assert numbers(3) == [3, 0.25, [0, 3, 0], 1.5, 1]
    assert numbers(4) == [4, 0.25, [0, 4, 0], 2.0, 1]
    encoder.take()
    assert numbers(5) == [1, 0.25, [0, 1, 0], 0.5, 0]
    assert numbers(7) == [3, 0.25, [0, 3, 0], 1.5, 0]


def test_counts_of_a_refused_push_are_in_the_next_one_with_its_beginning(no_variables):
    no_variables.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    with collector() as seen:
        otlp = OtlpMetrics(resource_of("reviews"), seen.endpoint)
        got: list[int] = []
        ends: list[tuple[int, int]] = []
        for count, status in ((100, 200), (250, 503), (300, 200), (301, 200)):
            seen.status = status
            otlp.push(samples(count))
            if status == 200:
                (_, point), *_ = seen.metrics["agentflow.records.in"]
                got.append(point.as_int)
                ends.append((point.start_time_unix_nano, point.time_unix_nano))
        assert got == [100, 200, 1]
        assert [began for began, _ in ends[1:]] == [ended for _, ended in ends[:-1]], "no gap, no overlap"


def test_collector_that_refuses_is_told_and_costs_nothing_else(no_variables, caplog):
    with collector() as seen:
        seen.status = 401
        otlp = OtlpMetrics(resource_of("reviews"), seen.endpoint)
        otlp.push(samples())
        otlp.push(samples())
        assert [(line["to"], line["reason"]) for line in told(caplog)] == [
            (f"{seen.endpoint}/v1/metrics", "it answers 401 Unauthorized")
        ]
        seen.status = 200
        otlp.push(samples())
        assert not otlp.reachability.is_down


# -- sending
def test_refusals_say_why_and_whether_to_try_again_may_help(no_variables):
    with collector() as seen:
        sender = OtlpSender("traces", seen.endpoint)
        assert sender.send(b"") is None
        for status, is_passing in ((400, False), (401, False), (429, True), (500, False), (503, True)):
            seen.status = status
            refusal = sender.send(b"")
            assert refusal is not None
            assert (refusal.is_passing, str(status) in refusal.reason) == (is_passing, True)
    refusal = sender.send(b"")
    assert refusal is not None
    assert refusal.is_passing
    assert "refused" in refusal.reason


def test_a_collector_that_is_no_url_is_refused(no_variables):
    with pytest.raises(ValueError, match="named by a URL, such as http://localhost:4318, not 'nowhere/v1/traces'"):
        OtlpSender("traces", "nowhere")


@pytest.mark.parametrize("compression", ["gzip", "deflate", "none"])
def test_bodies_are_compressed_as_the_variables_say(no_variables, compression):
    no_variables.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    with collector() as seen:
        otlp = OtlpMetrics(resource_of("reviews"), seen.endpoint)
        otlp.push(samples())
        assert seen.value("agentflow.records.in") == 3
        assert seen.headers.get("Content-Encoding", "none").lower() == compression


def test_a_compression_that_nobody_knows_is_refused(no_variables):
    no_variables.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "snappy")
    with pytest.raises(ValueError, match="none, gzip or deflate, not 'snappy'"):
        OtlpSender("traces", None)
    OtlpSender("metrics", None)
