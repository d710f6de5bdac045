"""The event log of a worker: a file set for each subtask, and a topic; also across a kill."""

from __future__ import annotations

import signal

import msgspec
import pytest

from agentflow.observability.event_log_files import log_files
from agentflow.observability.event_log_search import LogSearch
from tests.kafka_place import Place

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


@pytest.fixture
def place(tmp_path, kafka):
    place = Place(tmp_path, kafka)
    job = place.path / "job.yaml"
    log = "event-log: {level: standard, target: [file, kafka], flush-interval: 20ms}\nredaction.fields: [n]\n"
    job.write_text(job.read_text() + log)
    return place


def test_records_of_a_worker_are_in_files_by_subtask_and_in_a_topic_by_key(place):
    place.topics.create(place.source, 3)
    place.write(200, keys=7)
    with place.worker() as worker:
        place.wait_for(place.sink, 200, worker)
    with place.worker(sends=signal.SIGKILL) as worker:
        place.write(10, keys=7, start=200)
        place.wait_for(place.sink, 210, worker)
        place.wait_for(f"{place.job}-event-log", 420, worker)
    files = log_files(place.path / "logs", place.job)
    lines = [msgspec.json.decode(line) for path in files for line in path.read_bytes().splitlines()]
    assert {path.name.split(".")[0].rpartition("-")[2] for path in files} == {"0", "1", "2"}
    assert {line["eventId"] for line in lines} == {
        one["eventId"] for one in place.topics.values(f"{place.job}-event-log")
    }
    assert sum(line["eventType"] == "_output_event" for line in lines) == 210
    assert {line["eventAttributes"]["output"]["n"] for line in lines if "output" in line["eventAttributes"]} == {"***"}
    for record in place.topics.read(f"{place.job}-event-log"):
        assert record.key == msgspec.json.decode(record.value)["businessKey"].encode()
    run = lines[0]["inputRunId"]
    assert [one["eventType"] for one in LogSearch(files).run(run)] == ["_input_event", "_output_event"]
