"""What must hold between the keys of a job file. No promise is lowered silently: a wish that cannot be met is an error."""

from __future__ import annotations

import os.path
from pathlib import Path

from agentflow.cli.job_file import (
    CsvSink,
    CsvSource,
    FileSink,
    FileSource,
    JobFile,
    JsonlSource,
    KafkaDeadLetters,
    KafkaSink,
    KafkaSource,
    PythonSource,
    StdinSource,
    StdoutSink,
)
from agentflow.cli.values import describe_command
from agentflow.plan.file_problems import ProblemList
from agentflow.runtime.codecs import RECORD_KEY
from agentflow.runtime.redaction import redaction_problems


def check_job(job_file: JobFile, problems: ProblemList) -> None:
    """Add what contradicts itself."""
    _check_guarantee(job_file, problems)
    _check_directories(job_file, problems)
    _check_csv(job_file, problems)
    _check_urls(job_file, problems)
    _check_follow(job_file, problems)
    _check_telemetry(job_file, problems)
    settings, composition = job_file.settings, job_file.composition
    if isinstance(composition.source, KafkaSource):
        _check_kafka(job_file, problems)
    elif composition.key_by == RECORD_KEY and not (
        isinstance(composition.source, PythonSource) and "key-by" in job_file.places
    ):
        is_named = "key-by" in job_file.places
        problems.add(
            "key-by: records of files and of standard input have no key of their own"
            if is_named
            else "'key-by' is missing",
            job_file.place("key-by"),
            note="name a field of the value, or module:function" if is_named else "such as  key-by: product_id",
            help="" if is_named else describe_command(()),
        )
    try:
        settings.metrics.bounds_ns()
    except ValueError as error:
        place = job_file.place("metrics.histogram-buckets")
        problems.add(f"metrics.histogram-buckets: {error}", place, note="such as  [1ms, 10ms, 100ms, 1s]")
    if settings.on_overflow == "dead-letter" and composition.dead_letter is None:
        problems.add(
            "on-overflow: dead-letter needs a dead-letter sink",
            job_file.place("on-overflow"),
            note="add  dead-letter: {jsonl: {path: dead/}}  or take 'pause'",
        )


def _check_kafka(job_file: JobFile, problems: ProblemList) -> None:
    composition, settings = job_file.composition, job_file.settings
    for name, sink in (("sink", composition.sink), ("dead-letter", composition.dead_letter)):
        if sink is not None and not isinstance(sink, KafkaSink | KafkaDeadLetters):
            problems.add(
                f"{name}: a job that reads Kafka writes Kafka, in one transaction",
                job_file.place(name),
                note=f"such as  {name}: {{kafka: {{topic: …}}}}",
            )
    if settings.guarantee == "none":
        problems.add(
            "a worker gives exactly-once or at-least-once, not none",
            job_file.place("guarantee"),
            note="remove it, or take at-least-once: outputs at once, memory still exact",
        )
    elif settings.state.dir is None:
        problems.add(
            "a worker needs a state directory: RocksDB is the copy of the changelog that it works with",
            job_file.place("state"),
            note="state.dir is not set",
            help=f"set  state.dir: ./state/{settings.job}",
        )
    event_time = settings.event_time
    if composition.key_by != RECORD_KEY and (event_time.field or event_time.watermarks not in (None, "none")):
        problems.add(
            "event time does not cross a repartition topic: records of one partition meet there in any order",
            job_file.place("event-time"),
            note="key-by: record.key needs none",
            help="write the input with the key of the job, or remove event-time",
        )
    topics = {"source.kafka.topics": composition.source.topics} if isinstance(composition.source, KafkaSource) else {}
    for name, sink in (("sink", composition.sink), ("dead-letter", composition.dead_letter)):
        if isinstance(sink, KafkaSink | KafkaDeadLetters):
            topics[f"{name}.kafka.topic"] = (sink.topic,)
    owners: dict[str, str] = {}
    for key, names in topics.items():
        for name in names:
            if name in owners:
                problems.add(
                    f"{key} and {owners[name]} are the same topic, '{name}'",
                    job_file.place(key),
                    note="choose another one",
                )
            owners.setdefault(name, key)
    if settings.checkpoint.interval_ms * 2 > settings.kafka.transaction_timeout_ms:
        problems.add(
            "checkpoint.interval is more than half of kafka.transaction-timeout: the broker would abort open checkpoints",
            job_file.place("kafka.transaction-timeout", "checkpoint.interval"),
            note="lower the one or raise the other",
        )


def _check_telemetry(job_file: JobFile, problems: ProblemList) -> None:
    for key, what in redaction_problems(job_file.settings.redaction):
        problems.add(f"{key}: {what}", job_file.place(key, "redaction"), help=describe_command(("redaction",)))
    log, composition = job_file.settings.event_log, job_file.composition
    sinks = {"sink": composition.sink, "dead-letter": composition.dead_letter}
    for name, sink in sinks.items() if "stdout" in log.target and log.is_on else ():
        if isinstance(sink, StdoutSink):
            problems.add(
                f"event-log.target and {name} are both standard output: nobody could tell their lines apart",
                job_file.place("event-log.target"),
                note="take the target file",
            )


def _check_guarantee(job_file: JobFile, problems: ProblemList) -> None:
    settings, composition = job_file.settings, job_file.composition
    guarantee = settings.guarantee
    if isinstance(composition.source, StdinSource):
        if guarantee != "none":
            no_state = "" if settings.state.dir is None else ", and remove state.dir"
            problems.add(
                f"standard input cannot be read twice, so the job cannot be {guarantee}",
                job_file.place("source.stdin"),
                note="a jsonl source can",
                help=f"set  guarantee: none{no_state};  or  source: {{jsonl: {{path: in.jsonl}}}}",
            )
        elif settings.state.dir is not None:
            problems.add(
                "state.dir keeps positions, which mean nothing for standard input",
                job_file.place("state.dir"),
                note="remove it",
            )
        return
    if guarantee != "exactly-once":
        return
    for name, sink in (("sink", composition.sink), ("dead-letter", composition.dead_letter)):
        if isinstance(sink, StdoutSink):
            problems.add(
                f"{name}: standard output is at-least-once, so the job cannot be exactly-once",
                job_file.place(f"{name}.stdout"),
                note="a jsonl sink can",
                help=f"set  guarantee: at-least-once;  or  {name}: {{jsonl: {{path: out/}}}}",
            )
    if settings.state.dir is None and not isinstance(composition.source, KafkaSource):
        problems.add(
            "an exactly-once job needs a state directory: state in memory is lost with the process",
            job_file.place("guarantee", "state"),
            note="state.dir is not set",
            help=f"set  state.dir: ./state/{settings.job};  or  guarantee: none",
        )


def _check_follow(job_file: JobFile, problems: ProblemList) -> None:
    source = job_file.composition.source
    if not isinstance(source, JsonlSource):
        return
    key = "source.jsonl.poll-interval"
    if source.poll_interval_ms is not None and not source.follow:
        problems.add(
            f"{key} is for files that are followed", job_file.place(key), note="add  follow: true,  or remove it"
        )
    if not source.follow:
        return
    from agentflow.connectors.stores import is_url

    if any(map(is_url, source.path)):
        problems.add(
            "objects of a store do not grow: source.jsonl.follow is for local files",
            job_file.place("source.jsonl.follow"),
            note="remove it, or name local files",
        )
    folders = {os.path.realpath(path if Path(path).is_dir() else Path(path).parent) for path in source.path}
    for name, sink in (("sink", job_file.composition.sink), ("dead-letter", job_file.composition.dead_letter)):
        if isinstance(sink, FileSink) and os.path.realpath(sink.path) in folders:
            key = f"{name}.{sink.kind}.path"
            problems.add(
                f"{key} is a directory that the source follows: the job would read what it writes",
                job_file.place(key),
                note="choose another one",
            )


def _check_directories(job_file: JobFile, problems: ProblemList) -> None:
    """Two owners of one directory would delete each other's files."""
    composition = job_file.composition
    owners: dict[str, str] = {}
    named = [("sink", composition.sink), ("dead-letter", composition.dead_letter)]
    places = [(f"{role}.{sink.kind}.path", sink.path) for role, sink in named if isinstance(sink, FileSink)]
    if job_file.settings.state.dir is not None:
        places.append(("state.dir", job_file.settings.state.dir))
    log = job_file.settings.event_log
    if "file" in log.target and log.is_on:
        places.append(("event-log.dir", log.dir))
    sources = composition.source.path if isinstance(composition.source, FileSource) else ()
    for key, path in places:
        real = os.path.realpath(path)
        if real in owners:
            problems.add(
                f"{key} and {owners[real]} are the same directory", job_file.place(key), note="choose another one"
            )
        elif real in {os.path.realpath(source) for source in sources}:
            problems.add(f"{key} is the file that the source reads", job_file.place(key), note="a directory is wanted")
        owners.setdefault(real, key)


def _check_csv(job_file: JobFile, problems: ProblemList) -> None:
    """What the connectors would refuse is told with its line."""
    composition = job_file.composition
    roles = (("source", composition.source), ("sink", composition.sink), ("dead-letter", composition.dead_letter))
    for role, part in roles:
        if not isinstance(part, CsvSource | CsvSink):
            continue
        from agentflow.connectors.csv_source import csv_dialect, scalar_types  # for jobs with CSV only

        if not part.header and part.columns is None:
            problems.add(
                f"{role}.csv.columns is missing: files without a header do not say what their columns are called",
                job_file.place(f"{role}.csv.header"),
                note=f"such as  {role}.csv.columns: [product_id, stars]",
            )
        try:
            csv_dialect(part.delimiter, part.quote, part.encoding if isinstance(part, CsvSource) else "utf-8")
        except ValueError as error:
            keys = [f"{role}.csv.{key}" for key in ("delimiter", "quote", "encoding") if key in str(error)]
            problems.add(f"{role}.csv: {error}", job_file.place(*keys))
        try:
            scalar_types((part.types or {}) if isinstance(part, CsvSource) else {})
        except ValueError as error:
            problems.add(f"{role}.csv.types: {error}", job_file.place(f"{role}.csv.types"))


def _check_urls(job_file: JobFile, problems: ProblemList) -> None:
    composition = job_file.composition
    roles = (("source", composition.source), ("sink", composition.sink), ("dead-letter", composition.dead_letter))
    for role, part in roles:
        if not isinstance(part, FileSource | FileSink):
            continue
        for path in (part.path,) if isinstance(part.path, str) else part.path:
            if "://" not in path or path.startswith("file://"):
                continue
            from agentflow.connectors.object_store import split_url  # for jobs with URLs only

            try:
                split_url(path)
            except ValueError as error:
                problems.add(f"{role}.{part.kind}.path: {error}", job_file.place(f"{role}.{part.kind}.path"))
