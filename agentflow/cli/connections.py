"""From a source or sink of a job file to the connector that it means. The only place of the command line that names them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from agentflow.cli.job_file import (
    JsonlSink,
    JsonlSource,
    KafkaDeadLetters,
    KafkaSink,
    KafkaSource,
    StdinSource,
    StdoutSink,
)
from agentflow.errors import ConfigError
from agentflow.runtime.ports import Sink, Source
from agentflow.runtime.settings import JobSettings


def source_opener(source: JsonlSource | StdinSource | KafkaSource, settings: JobSettings) -> Callable[[], Source]:
    """Return what makes the source of an embedded job, at each start of the job."""
    if isinstance(source, KafkaSource):
        raise ConfigError(["a job that reads Kafka is run by: agentflow worker"])
    if isinstance(source, JsonlSource):
        from agentflow.connectors.jsonl import JsonlSource as Files

        poll_ms, wait_ms = source.poll_interval_ms, source.rotate_wait_ms
        return lambda: Files(
            source.path,
            record_max_bytes=settings.record_max_bytes,
            follow=source.follow,
            poll_interval=None if poll_ms is None else timedelta(milliseconds=poll_ms),
            rotate_wait=timedelta(milliseconds=wait_ms),
        )
    from agentflow.connectors.standard_streams import StdinSource as Stdin

    return lambda: Stdin(record_max_bytes=settings.record_max_bytes)


def open_sink(sink: JsonlSink | StdoutSink | KafkaSink | KafkaDeadLetters) -> Sink:
    """Make a sink of an embedded job."""
    if isinstance(sink, KafkaSink | KafkaDeadLetters):
        raise ConfigError(["an embedded job cannot write to Kafka exactly once: read from Kafka with agentflow worker"])
    if isinstance(sink, JsonlSink):
        from agentflow.connectors.jsonl_sink import JsonlSink as Directory

        return Directory(sink.path)
    from agentflow.connectors.standard_streams import StdoutSink as Stdout

    return Stdout()
