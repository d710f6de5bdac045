"""Brokers, topics, rights, the group and the changelog of a Kafka job. What a worker checks at its start is asked by its own code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agentflow.cli.doctor.findings import Finding, Subject, error, note, ok, skipped, warning
from agentflow.cli.doctor.places import size_text
from agentflow.cli.doctor.requirements import Requirement
from agentflow.cli.doctor.running import in_thread
from agentflow.cli.doctor.state_checks import subtask_paths
from agentflow.cli.job_file import KafkaDeadLetters, KafkaSink, KafkaSource
from agentflow.core.delta import POSITIONS_NAME, Table, decode_positions
from agentflow.errors import ConfigError, StateError
from agentflow.runtime.codecs import RECORD_KEY

if TYPE_CHECKING:
    from agentflow.connectors.kafka.positions import PartitionPlace
    from agentflow.connectors.kafka.reach import Contact
    from agentflow.connectors.kafka.topics import JobTopics

_CONTACT_S = 4.0
_AHEAD_MS = 2_000
_RETENTION_MS = 86_400_000
_DELETIONS_MS = 3_600_000
_SHOWN = 5


def no_kafka(subject: Subject) -> str:
    """Say why nothing of Kafka is to be looked at; empty: it is."""
    if subject.job_file is None:
        return "the job file has problems"
    if not isinstance(subject.job.composition.source, KafkaSource):
        return "the job does not read Kafka"
    return "" if Requirement("aiokafka", "", "kafka").installed else "the extra 'kafka' is not installed"


def _source(subject: Subject) -> KafkaSource:
    source = subject.job.composition.source
    assert isinstance(source, KafkaSource), "a check of another job"
    return source


def job_topics(subject: Subject) -> JobTopics:
    """Return the topics of the job, as its workers name them."""
    from agentflow.api.codecs import JSON
    from agentflow.connectors.kafka.group import Reading
    from agentflow.environment.kafka_job import topics_of

    composition, settings = subject.job.composition, subject.job.settings
    sink, dead = composition.sink, composition.dead_letter
    assert isinstance(sink, KafkaSink), "checked with the job file"
    reading = Reading(_source(subject).topics, JSON)
    dead_topic = dead.topic if isinstance(dead, KafkaDeadLetters) else None
    return topics_of(settings, reading, sink.topic, dead_topic, is_rekeyed=composition.key_by != RECORD_KEY)


async def client(subject: Subject) -> Sequence[Finding]:
    """Look at the client library, whether the security settings fit together, and the certificates can be read.

    A coroutine, though it waits for nothing: modules of aiokafka import each other, which breaks when two threads begin.
    """
    from agentflow.connectors.kafka.connection import client_options, security_problems
    from agentflow.connectors.kafka.reach import has_extensions

    settings = subject.job.settings.kafka
    problems = security_problems(settings.security)
    if not problems:
        try:
            client_options(settings)
        except ConfigError as failure:
            problems = list(failure.problems)
    if problems:
        fix = 'correct kafka.security; docs/operating-kafka.md, "Security"'
        return [error(problem, "settings that fit together", fix) for problem in problems]
    if settings.security.protocol == "sasl-plaintext" and settings.security.mechanism in ("PLAIN", "OAUTHBEARER"):
        found = f"{settings.security.mechanism} over an open connection: whoever listens has the credentials"
        return [warning(found, "TLS", "kafka.security.protocol: sasl-ssl")]
    if not has_extensions():
        return [
            warning(
                "aiokafka has no compiled code here, or AIOKAFKA_NO_EXTENSIONS is set",
                "its compiled code: batches are read and written many times as fast",
                "unset AIOKAFKA_NO_EXTENSIONS; install a wheel of aiokafka for this platform, or a C compiler before pip",
            )
        ]
    return [
        ok(f"{settings.security.protocol}{f', {settings.security.mechanism}' if settings.security.mechanism else ''}")
    ]


async def brokers(subject: Subject) -> Sequence[Finding]:
    """Connect to each configured broker by itself, and to each that they name."""
    from agentflow.connectors.kafka.reach import bootstrap_addresses, contact

    settings = subject.job.settings.kafka
    try:
        addresses = bootstrap_addresses(settings)
    except ValueError as failure:
        fix = "correct kafka.brokers: host:port, several with commas"
        return [error(f"kafka.brokers: {settings.brokers}: {failure}", "addresses", fix)]
    contacts = await asyncio.gather(*(contact(settings, host, port, _CONTACT_S) for host, port in addresses))
    named = list(dict.fromkeys(one for reached in contacts for one in reached.brokers if one not in addresses))
    advertised = await asyncio.gather(*(contact(settings, host, port, _CONTACT_S) for host, port in named))
    if all(reached.error for reached in contacts):
        return [_unreached(reached, is_fatal=True) for reached in contacts]
    findings = [_unreached(reached, is_fatal=False) for reached in contacts if reached.error]
    for reached in advertised:
        if reached.error:
            found = f"the brokers call one of them {reached.address}, and from here: {reached.error}"
            fix = "correct advertised.listeners of that broker, or let this machine reach it"
            findings.append(error(found, "advertised addresses that clients can reach", fix))
    well = [reached for reached in (*contacts, *advertised) if not reached.error]
    is_static = subject.job.settings.kafka.instance_id is not None
    for reached in well:
        if missing := reached.lacks(is_static_member=is_static):
            found = f"{reached.address} ({reached.release}) has no {', '.join(missing)}"
            findings.append(error(found, "Apache Kafka 2.3, or newer", "upgrade the brokers"))
    shown = ", ".join(f"{reached.address} ({reached.release})" for reached in well[:_SHOWN])
    return [ok(shown + (f" and {len(well) - _SHOWN} more" if len(well) > _SHOWN else "")), *findings]


def _unreached(reached: Contact, *, is_fatal: bool) -> Finding:
    expected = "a broker that answers"
    if is_fatal:
        return error(f"{reached.address}: {reached.error}", expected, reached.fix)
    return warning(f"{reached.address}: {reached.error}; the others answer", expected, reached.fix)


async def topics(subject: Subject) -> Sequence[Finding]:
    """Look at the topics as a worker does when it starts."""
    from agentflow.connectors.kafka.topics import inspect_topics

    settings = subject.job.settings
    subject.topics = job_topics(subject)
    subject.report = report = await inspect_topics(
        settings.kafka, settings.topics, subject.topics, settings.checkpoint.interval_ms
    )
    if report.problems:
        return [error(problem.what, "topics that the job can start with", problem.fix) for problem in report.problems]
    shown = ", ".join(f"'{topic}'" for topic in report.missing)
    return [
        ok(f"{report.facts.subtasks} subtasks; " + (f"a worker would create {shown}" if shown else "all topics exist"))
    ]


async def creation(subject: Subject) -> Sequence[Finding]:
    """Ask the brokers whether they would create the topics that are missing."""
    from agentflow.connectors.kafka.topics import refused_topics

    settings, report, job_topics = subject.job.settings, subject.report, subject.topics
    assert report is not None, "needs the topics"
    assert job_topics is not None, "needs the topics"
    if not report.missing:
        return [skipped("no topic is missing")]
    refused = await refused_topics(settings.kafka, settings.topics, job_topics, report)
    if refused:
        return [error(problem.what, "topics that can be created", problem.fix) for problem in refused]
    return [ok(f"the brokers would create {', '.join(report.missing)}")]


async def rights(subject: Subject) -> Sequence[Finding]:
    """Ask the brokers what this client may do; also where topics are missing, for who may not see one takes it for that."""
    from agentflow.connectors.kafka.rights import missing_rights
    from agentflow.connectors.kafka.topics import partition_counts

    settings, topics = subject.job.settings, job_topics(subject)
    partitions = await partition_counts(settings.kafka, topics.every)
    missing = await missing_rights(settings.kafka, settings.job, topics, partitions)
    if missing:
        return [error(f"this client may not {right.what}", "the rights of a worker", right.fix) for right in missing]
    return [ok(f"read {', '.join(topics.inputs)}; write outputs, changelog and journal; group and transactional ids")]


def topic_settings(subject: Subject) -> Sequence[Finding]:
    """Look at settings that a worker starts with, and that cost something on a bad day."""
    assert subject.topics is not None, "needs the topics"
    return [*_durability(subject), *_retention(subject)] or [ok("replication, retention and sizes fit")]


def _durability(subject: Subject) -> Iterator[Finding]:
    report, job_topics = subject.report, subject.topics
    assert report is not None, "needs the topics"
    assert job_topics is not None, "needs the topics"
    alone = []
    for topic, (replicas, in_sync) in report.replicas.items():
        config = report.configs.get(topic, {})
        least = int(config.get("min.insync.replicas", 1))
        is_own = topic in job_topics.roles
        if in_sync < least:
            found = f"topic '{topic}' has {in_sync} replicas in sync, and takes no records below {least} (min.insync.replicas)"
            yield error(found, "brokers that follow", "look at the brokers: some are down, or far behind")
        elif in_sync < replicas:
            yield warning(
                f"topic '{topic}' has {in_sync} of {replicas} replicas in sync", "all of them", "look at the brokers"
            )
        if replicas == 1:
            alone.append(topic)
        elif least == 1 and is_own:
            found = f"topic '{topic}' has min.insync.replicas=1: a record may be acknowledged that one broker alone has"
            yield warning(found, "2, with 3 replicas", f"set min.insync.replicas=2 on '{topic}'")
        if is_own and config.get("unclean.leader.election.enable") == "true":
            found = f"topic '{topic}' has unclean.leader.election.enable=true: a broker that lags may take over, and records are gone"
            yield warning(found, "false", f"set unclean.leader.election.enable=false on '{topic}'")
    if alone:
        shown = ", ".join(alone)
        if report.brokers == 1:
            yield note(f"one broker: what it loses is lost ({shown})")
        else:
            found = f"one replica only: {shown}; a broker that is lost takes the job's state with it"
            yield warning(found, "3 replicas", "reassign them to 3 brokers (kafka-reassign-partitions)")


def _retention(subject: Subject) -> Iterator[Finding]:
    report, job_topics = subject.report, subject.topics
    assert report is not None, "needs the topics"
    assert job_topics is not None, "needs the topics"
    for topic, config in report.configs.items():
        role = job_topics.roles.get(topic, "")
        kept_ms = int(config.get("retention.ms", -1))
        if role in ("journal", "repartition") and (kept_ms != -1 or config.get("retention.bytes", "-1") != "-1"):
            found = f"{role} topic '{topic}' forgets (retention.ms={kept_ms}, retention.bytes={config.get('retention.bytes')})"
            yield warning(
                found, "-1 for both: its reader cuts it", f"set retention.ms=-1 and retention.bytes=-1 on '{topic}'"
            )
        elif (
            topic in job_topics.inputs
            and 0 <= kept_ms < _RETENTION_MS
            and "delete" in config.get("cleanup.policy", "delete")
        ):
            found = f"input topic '{topic}' keeps records for {kept_ms / 3_600_000:.3g} h: a job that stands still longer loses some"
            yield warning(found, "a day or more", f"raise retention.ms of '{topic}'")
        elif role == "changelog" and int(config.get("delete.retention.ms", _RETENTION_MS)) < _DELETIONS_MS:
            found = f"changelog topic '{topic}' keeps deletions for {config['delete.retention.ms']} ms"
            yield note(
                f"{found}: state that was not open for half of that is rebuilt",
                f"raise delete.retention.ms of '{topic}'",
            )
    record_max = subject.job.settings.record_max_bytes
    output_max = report.facts.message_max[job_topics.output]
    if job_topics.output in report.configs and output_max < record_max:
        found = f"outputs above {size_text(output_max)} fail their run (max.message.bytes of '{job_topics.output}')"
        yield note(f"{found}; record-max is {size_text(record_max)}")


async def group(subject: Subject) -> Sequence[Finding]:
    """Look who is in the group, and how far it is behind."""
    from agentflow.connectors.kafka.assignor import ASSIGNOR_NAME
    from agentflow.connectors.kafka.describe import describe_group

    settings, job_topics = subject.job.settings, subject.topics
    assert job_topics is not None, "needs the topics"
    found = await describe_group(settings.kafka, settings.job, (*job_topics.inputs, *job_topics.repartition))
    lag = sum(partition.lag or 0 for subtask in found.subtasks for partition in subtask.partitions)
    if found.members and found.protocol != ASSIGNOR_NAME:
        return [
            error(
                f"group '{settings.job}' has {found.members} members of another program (assignor '{found.protocol}')",
                "a group of this job alone: it is named like the job",
                "name the job otherwise, or that program's group",
            )
        ]
    if found.members:
        return [note(f"the job is running: members {found.members}, group {found.state}, lag {lag:,}")]
    return [ok(f"nobody is in group '{settings.job}', lag {lag:,}")]


async def changelog(subject: Subject) -> Sequence[Finding]:
    """Look whether changelog, group offsets, inputs, and copies of the state on this machine fit together."""
    report, job_topics = subject.report, subject.topics
    assert report is not None, "needs the topics"
    assert job_topics is not None, "needs the topics"
    read = {place.label: place for place in await _places(subject, (*job_topics.inputs, *job_topics.repartition))}
    kept = {place.number: place for place in await _places(subject, (job_topics.changelog,))}
    copies = await in_thread(lambda: _copies(subject))
    findings = [*_lost(subject, read, kept, copies), *_behind(subject, kept, copies)]
    if findings:
        return findings
    used = sum(1 for place in kept.values() if place.end > place.begin)
    return [ok(f"{used} of {report.facts.subtasks} subtasks have checkpoints" if used else "the job has not run yet")]


async def _places(subject: Subject, topics: Sequence[str], later_ms: int | None = None) -> list[PartitionPlace]:
    from agentflow.connectors.kafka.positions import places

    settings, report = subject.job.settings, subject.report
    assert report is not None, "needs the topics"
    later_ms = time.time_ns() // 1_000_000 if later_ms is None else later_ms
    return await places(settings.kafka, settings.job, topics, report.partitions, later_ms)


class _Copy(msgspec.Struct):
    """A copy of a subtask's state on this machine: how far it followed the changelog, and what had been read then."""

    changelog_position: int
    positions: dict[str, int]


def _copies(subject: Subject) -> dict[int, _Copy]:
    """Return the copies that are on this machine, by subtask."""
    from agentflow.state.rocksdb_rows import StateView

    copies: dict[int, _Copy] = {}
    for path in subtask_paths(subject) if subject.job.settings.state.dir is not None else ():
        try:
            view = StateView(path)
        except StateError:
            continue  # told by 'contents'
        if view.changelog_position is not None:
            rows = {row.name: row.value for row in view.rows(Table.META)}
            positions = decode_positions(rows[POSITIONS_NAME]) if POSITIONS_NAME in rows else {}
            copies[_number(path)] = _Copy(view.changelog_position, positions)
        view.close()
    return copies


def _lost(
    subject: Subject,
    read: Mapping[str, PartitionPlace],
    kept: Mapping[int, PartitionPlace],
    copies: Mapping[int, _Copy],
) -> Iterator[Finding]:
    """Look for what the job would miss: its changelog, or records that it has not read yet."""
    job = subject.job.settings.job
    for place in read.values():
        log, copy = kept.get(place.number), copies.get(place.number)
        if place.committed is not None and (log is None or log.end == log.begin):
            yield error(
                f"the group has read {place.label} up to offset {place.committed}, and the changelog knows nothing of it",
                "the changelog topic that belongs to the group's offsets",
                f"restore topic '{job}-changelog'; or start a job of another name, which begins with empty state",
            )
            continue
        # A topic that is deleted takes the group's offsets with it; the state still knows.
        reached = place.committed if place.committed is not None or copy is None else copy.positions.get(place.label)
        if reached is not None and reached < place.begin and _source(subject).on_offset_reset == "fail":
            yield error(
                f"{place.label}: the next record ({reached}) is gone, the first one that is kept is {place.begin}",
                "every record from the last checkpoint on",
                "raise the retention of the topic; source.on-offset-reset: earliest goes on with what is left",
            )
        elif reached is not None and reached > place.end:
            yield error(
                f"{place.label} ends at offset {place.end}, and the job has read up to {reached}",
                "the topic that was read before",
                "put it back; or start a job of another name on the new one",
            )


def _behind(subject: Subject, kept: Mapping[int, PartitionPlace], copies: Mapping[int, _Copy]) -> Iterator[Finding]:
    """Look whether the changelog has what copies of the state rest on."""
    for number, place in kept.items():
        copy = copies[number].changelog_position if number in copies else 0
        if copy > place.end:
            yield error(
                f"the state of subtask {number} on this machine is at changelog offset {copy}, the changelog ends at {place.end}",
                "the changelog that this state was written with",
                f"put the topic back, or move {subject.job.settings.state.dir}/subtask-{number} away: it is rebuilt",
            )
        elif place.begin > copy:
            yield error(
                f"{place.label} begins at offset {place.begin}; what was before is gone",
                "every key's last record, as cleanup.policy=compact keeps it",
                "restore the topic; or start a job of another name, which begins with empty state",
            )


def _number(path: Path) -> int:
    digits = path.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


async def partitioner(subject: Subject) -> Sequence[Finding]:
    """Look whether records of the input, and the job's state, lie where the job would put their keys."""
    from agentflow.environment.kafka_job import find_placement

    settings, report = subject.job.settings, subject.report
    assert report is not None, "needs the topics"
    if any(topic in report.missing for topic in _source(subject).topics):
        return [skipped("an input topic is still to be created")]
    if not settings.kafka.partitioner_check:
        return [skipped("kafka.partitioner-check is false")]
    try:
        found = await find_placement(
            settings,
            _source(subject).topics,
            report.facts.subtasks,
            is_rekeyed=subject.job.composition.key_by != RECORD_KEY,
            has_changelog=f"{settings.job}-changelog" not in report.missing,
        )
    except ConfigError as failure:
        fix = "the job starts when producers and kafka.partitioner agree"
        return [error(problem, "one partitioner for all producers", fix) for problem in failure.problems]
    return [ok(found.name if found.is_settled else f"{found.name}, until a record shows another one")]


async def record_times(subject: Subject) -> Sequence[Finding]:
    """Look for records from the future: whoever wrote them, a producer or the broker, has another time than this machine."""
    report, job_topics = subject.report, subject.topics
    assert report is not None, "needs the topics"
    assert job_topics is not None, "needs the topics"
    now_ms = time.time_ns() // 1_000_000
    ahead = [place for place in await _places(subject, job_topics.every, now_ms + _AHEAD_MS) if place.ahead is not None]
    if not ahead:
        return [ok(f"no record is more than {_AHEAD_MS / 1000:g} s ahead of this machine")]
    shown = ", ".join(
        f"{place.label}@{place.ahead[0]} by {(place.ahead[1] - now_ms) / 1000:.1f} s"
        for place in ahead[:_SHOWN]
        if place.ahead
    )
    return [
        warning(
            f"records are ahead of this machine's clock: {shown}",
            "one time on all machines: timers, TTL and watermarks go by it",
            "let NTP keep the clocks of this machine, of the producers and of the brokers",
        )
    ]


async def rehearsals(subject: Subject) -> Sequence[Finding]:
    """Look for topics that a killed `agentflow verify` has left behind."""
    from agentflow.connectors.kafka.rehearsal import rehearsal_topics

    settings = subject.job.settings
    found = await rehearsal_topics(settings.kafka, settings.job)
    if not found:
        return [ok("agentflow verify has left nothing behind")]
    shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    fix = "delete them, unless agentflow verify runs just now: kafka-topics.sh --delete --topic …"
    return [note(f"topics of agentflow verify, which was killed or runs: {shown}", fix)]
