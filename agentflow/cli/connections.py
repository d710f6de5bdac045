"""From a source or sink of a job file to the connector that it means. The only place of the command line that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from agentflow.cli.job_file import (
    ArrowSink,
    ArrowSource,
    CsvSink,
    CsvSource,
    FileSink,
    FileSource,
    HttpSource,
    JsonlSink,
    JsonlSource,
    KafkaDeadLetters,
    KafkaSink,
    KafkaSource,
    ParquetSink,
    ParquetSource,
    PythonSink,
    PythonSource,
    StdinSource,
    StdoutSink,
)
from agentflow.errors import ConfigError
from agentflow.runtime.ports import Sink, Source
from agentflow.runtime.settings import JobSettings


def source_opener(
    source: FileSource | StdinSource | HttpSource | KafkaSource | PythonSource,
    settings: JobSettings,
    connectors: Mapping[str, Any],
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
            store=settings.object_store,
            follow=source.follow,
            poll_interval=None if poll_ms is None else timedelta(milliseconds=poll_ms),
            rotate_wait=timedelta(milliseconds=wait_ms),
        )
    if isinstance(source, CsvSource):
        return _csv_opener(source, settings)
    if isinstance(source, ParquetSource | ArrowSource):
        from agentflow.connectors import arrow_source

        kind = arrow_source.ParquetSource if isinstance(source, ParquetSource) else arrow_source.ArrowSource
        return lambda: kind(source.path, columns=source.columns, store=settings.object_store)
    if isinstance(source, HttpSource):
        from agentflow.connectors.http_source import HttpSource as Http

        ingress = Http(source.host, source.port, source.path, body_max_bytes=source.body_max_bytes)
        return lambda: ingress
    from agentflow.connectors.standard_streams import StdinSource as Stdin

    return lambda: Stdin(record_max_bytes=settings.record_max_bytes)


def _csv_opener(source: CsvSource, settings: JobSettings) -> Callable[[], Source]:
    from agentflow.connectors.csv_source import CsvSource as Files

    return lambda: Files(
        source.path,
        header=source.header,
        columns=source.columns,
        delimiter=source.delimiter,
        quote=source.quote,
        encoding=source.encoding,
        null_values=source.null_values,
        types=source.types,
        infer_types=source.infer_types,
        record_max_bytes=settings.record_max_bytes,
        store=settings.object_store,
    )


def open_sink(
    role: str,
    sink: FileSink | StdoutSink | KafkaSink | KafkaDeadLetters | PythonSink,
    settings: JobSettings,
    connectors: Mapping[str, Any],
) -> Sink:
    """Make a sink of an embedded job; ``connectors`` are the user's own, by role."""
    store = settings.object_store
    if isinstance(sink, PythonSink):
        from agentflow.cli.own_connectors import open_own_sink

        return open_own_sink(connectors[role], sink)
    if isinstance(sink, KafkaSink | KafkaDeadLetters):
        raise ConfigError(["an embedded job cannot write to Kafka exactly once: read from Kafka with agentflow worker"])
    if isinstance(sink, JsonlSink):
        from agentflow.connectors.jsonl_sink import JsonlSink as Directory

        return Directory(sink.path, store=store)
    if isinstance(sink, CsvSink):
        from agentflow.connectors.csv_sink import CsvSink as CsvDirectory

        return CsvDirectory(
            sink.path,
            header=sink.header,
            columns=sink.columns,
            delimiter=sink.delimiter,
            quote=sink.quote,
            null_value=sink.null_value,
            store=store,
        )
    if isinstance(sink, ParquetSink):
        from agentflow.connectors.arrow_sinks import ParquetSink as ParquetDirectory

        return ParquetDirectory(sink.path, schema=sink.schema, compression=sink.compression, store=store)
    if isinstance(sink, ArrowSink):
        from agentflow.connectors.arrow_sinks import ArrowSink as ArrowDirectory

        return ArrowDirectory(sink.path, schema=sink.schema, compression=sink.compression, store=store)
    from agentflow.connectors.standard_streams import StdoutSink as Stdout

    return Stdout()
