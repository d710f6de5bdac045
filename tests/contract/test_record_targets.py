"""Every target of the event log obeys the laws of the port."""

from __future__ import annotations

import io
import uuid

import msgspec
import pytest

from agentflow.observability.event_log_files import LogFiles, log_files
from agentflow.observability.event_log_targets import Listeners, OtelLogs, StdoutLines
from agentflow.runtime.settings import EventLogSettings, KafkaSettings, TopicSettings
from agentflow.testing.conformance.record_target import RecordTargetConformance, record
from tests.otlp_receiver import attributes_of, collector


class TestLogFiles(RecordTargetConformance):
    @pytest.fixture
    def new_target(self, tmp_path):
        return lambda: LogFiles("job", EventLogSettings(dir=str(tmp_path / "deep" / "logs")))

    @pytest.fixture
    def read_records(self, tmp_path):
        def read():
            lines = [
                line for path in log_files(tmp_path / "deep" / "logs", "job") for line in path.read_bytes().splitlines()
            ]
            return [msgspec.json.decode(line)["eventId"] for line in lines]

        return read


class TestStdoutLines(RecordTargetConformance):
    @pytest.fixture
    def stream(self):
        return io.BytesIO()

    @pytest.fixture
    def new_target(self, stream):
        return lambda: StdoutLines(stream)

    @pytest.fixture
    def read_records(self, stream):
        return lambda: [msgspec.json.decode(line)["eventId"] for line in stream.getvalue().splitlines()]


class TestListeners(RecordTargetConformance):
    @pytest.fixture
    def heard(self):
        return []

    @pytest.fixture
    def new_target(self, heard):
        return lambda: Listeners([heard.append], lambda what, fields: None)

    @pytest.fixture
    def read_records(self, heard):
        return lambda: [one["eventId"] for one in heard]


class TestOtelLogs(RecordTargetConformance):
    @pytest.fixture
    def received(self):
        with collector() as received:
            yield received

    @pytest.fixture
    def new_target(self, received):
        return lambda: OtelLogs("job", received.endpoint)

    @pytest.fixture
    def read_records(self, received):
        return lambda: [attributes_of(one.attributes)["agentflow.event.id"] for _, one in received.records]


@pytest.mark.kafka
class TestKafkaEventLog(RecordTargetConformance):
    @pytest.fixture
    def topic(self):
        return f"log-{uuid.uuid4().hex[:10]}"

    @pytest.fixture
    def new_target(self, kafka, topic):
        from agentflow.connectors.kafka.event_log import KafkaEventLog

        return lambda: KafkaEventLog(KafkaSettings(brokers=kafka), TopicSettings(partitions=3), topic)

    @pytest.fixture
    def read_records(self, kafka, topic):
        from tests.kafka_topics import Topics

        def read():
            return [msgspec.json.decode(one.value)["eventId"] for one in Topics(kafka).read(topic)]

        return read

    def test_records_of_a_key_are_in_one_partition_under_their_key(self, kafka, topic, new_target):
        from tests.kafka_topics import Topics

        target = new_target()
        lines = [record(number).replace(b'"k"', b'"k%d"' % (number % 5)) for number in range(50)]
        target.write(0, lines)
        target.close()
        found = {}
        for one in Topics(kafka).read(topic):
            key = msgspec.json.decode(one.value)["businessKey"]
            assert one.key == key.encode()
            found.setdefault(key, []).append((one.partition, int(msgspec.json.decode(one.value)["eventId"])))
        assert len(found) == 5
        for places in found.values():
            assert len({partition for partition, _ in places}) == 1
            assert [number for _, number in places] == sorted(number for _, number in places)


def test_targets_of_kafka_fail_within_their_time_where_no_broker_answers():
    from agentflow.connectors.kafka.event_log import KafkaEventLog
    from agentflow.errors import AgentflowError

    target = KafkaEventLog(KafkaSettings(brokers="127.0.0.1:1"), TopicSettings(), "log")
    with pytest.raises(AgentflowError, match="no Kafka broker answers"):
        target.write(0, [record(1)])
    target.close()
