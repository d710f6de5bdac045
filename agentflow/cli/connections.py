"""From a source or sink of a job file to the connector that it means. The only place of the command line that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from agentflow.cli.job_file import (
    JsonlSink,
    JsonlSource,
    KafkaDeadLetters,
    KafkaSink,
    KafkaSource,
    PythonSink,
    PythonSource,
    StdinSource,
    StdoutSink,
)
from agentflow.errors import ConfigError
from agentflow.runtime.ports import Sink, Source
from agentflow.runtime.settings import JobSettings


def source_opener(
    source: JsonlSource | StdinSource | KafkaSource | PythonSource, settings: JobSettings, connectors: Mapping[str, Any]
) -> Callable[[], Source]:
    """Return what makes the source of an embedded job, at each start of the job; ``connectors`` are the user's own, by role."""
    if isinstance(source, PythonSource):
        from agentflow.cli.own_connectors import own_source_opener

        return own_source_opener(connectors["source"], source)
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


def open_sink(
    role: str, sink: JsonlSink | StdoutSink | KafkaSink | KafkaDeadLetters | PythonSink, connectors: Mapping[str, Any]
) -> Sink:
    """Make a sink of an embedded job; ``connectors`` are the user's own, by role."""
    if isinstance(sink, PythonSink):
        from agentflow.cli.own_connectors import open_own_sink

        return open_own_sink(connectors[role], sink)
    if isinstance(sink, KafkaSink | KafkaDeadLetters):
        raise ConfigError(["an embedded job cannot write to Kafka exactly once: read from Kafka with agentflow worker"])
    if isinstance(sink, JsonlSink):
        from agentflow.connectors.jsonl_sink import JsonlSink as Directory

        return Directory(sink.path)
    from agentflow.connectors.standard_streams import StdoutSink as Stdout

    return Stdout()
