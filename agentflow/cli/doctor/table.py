"""All checks, in the order in which they are shown. A check more is a function and a line here.

A check returns what it finds (`findings`), and may raise whatever it wants: that becomes a finding too.
"""

from __future__ import annotations

from agentflow.cli.doctor import (
    clock_checks,
    file_checks,
    job_checks,
    kafka_checks,
    network_checks,
    python_checks,
    state_checks,
)
from agentflow.cli.doctor.findings import Check, Subject
from agentflow.cli.doctor.kafka_checks import no_kafka
from agentflow.cli.doctor.state_checks import no_state, no_state_yet

_DISK_STUCK = "the disk does not answer: look at its mount (a dead NFS server?), and at state.dir"
_KAFKA_STUCK = "the brokers accept connections and answer too late: look at them, and at the network"


def _no_job(subject: Subject) -> str:
    return "the job file has problems" if subject.job_file is None else ""


def _no_layer(subject: Subject) -> str:
    return "the job file cannot be read" if subject.layer is None else ""


CHECKS: tuple[Check, ...] = (
    Check("python", "python", python_checks.python),
    Check("python", "libraries", python_checks.libraries),
    Check("python", "extras", python_checks.extras, unless=_no_job),
    Check("python", "event loop", python_checks.event_loop),
    Check("job", "job file", job_checks.job_file, is_first=True),
    Check(
        "job",
        "agent",
        job_checks.agent,
        timeout_s=30,
        unless=_no_job,
        is_first=True,
        stuck="a module waits while it is imported: let it connect and load when an action needs it",
    ),
    Check("job", "secrets", job_checks.secrets, unless=_no_layer),
    Check("job", "resources", job_checks.resources, needs=("agent",), unless=_no_job),
    Check("state", "directory", state_checks.directory, unless=no_state, stuck=_DISK_STUCK),
    Check("state", "owner", state_checks.owner, needs=("directory",), unless=no_state_yet),
    Check("state", "contents", state_checks.contents, timeout_s=30, needs=("directory",), unless=no_state_yet),
    Check(
        "state",
        "unfinished runs",
        job_checks.unfinished_runs,
        timeout_s=60,
        needs=("agent", "contents"),
        unless=no_state_yet,
        stuck="an action waits outside of its steps: agentflow runs check shows more",
    ),
    Check("state", "free space", state_checks.free_space, needs=("directory",), unless=no_state, stuck=_DISK_STUCK),
    Check("state", "disk", state_checks.disk, needs=("directory",), unless=no_state, stuck=_DISK_STUCK),
    Check("state", "sync speed", state_checks.sync_speed, 10, ("directory",), no_state, _DISK_STUCK),
    Check("files", "input", file_checks.input_files, 30, unless=_no_job, stuck=_DISK_STUCK),
    Check("files", "sink", file_checks.sink, unless=_no_job, stuck=_DISK_STUCK),
    Check("files", "dead letters", file_checks.dead_letters, unless=_no_job, stuck=_DISK_STUCK),
    Check("kafka", "client", kafka_checks.client, unless=no_kafka),
    Check("kafka", "brokers", kafka_checks.brokers, 20, ("client",), no_kafka, _KAFKA_STUCK),
    Check("kafka", "topics", kafka_checks.topics, 20, ("brokers",), no_kafka, _KAFKA_STUCK),
    Check("kafka", "topic creation", kafka_checks.creation, 20, ("topics",), no_kafka, _KAFKA_STUCK),
    Check("kafka", "topic settings", kafka_checks.topic_settings, needs=("topics",), unless=no_kafka),
    Check("kafka", "rights", kafka_checks.rights, 20, ("brokers",), no_kafka, _KAFKA_STUCK),
    Check("kafka", "group", kafka_checks.group, 20, ("topics", "rights"), no_kafka, _KAFKA_STUCK),
    Check("kafka", "changelog", kafka_checks.changelog, 30, ("topics", "rights"), no_kafka, _KAFKA_STUCK),
    Check("kafka", "partitioner", kafka_checks.partitioner, 30, ("topics", "rights"), no_kafka, _KAFKA_STUCK),
    Check("kafka", "record times", kafka_checks.record_times, 20, ("topics", "rights"), no_kafka, _KAFKA_STUCK),
    Check("kafka", "rehearsals", kafka_checks.rehearsals, 20, ("brokers",), no_kafka, _KAFKA_STUCK),
    Check("machine", "open files", state_checks.open_files, needs=("topics",), unless=no_state),
    Check("machine", "clock", clock_checks.clock),
    Check("machine", "time zone", clock_checks.time_zone),
    Check("machine", "time synchronisation", clock_checks.synchronisation),
    Check("machine", "admin port", network_checks.admin_port, unless=_no_job),
    Check("machine", "telemetry", network_checks.telemetry, unless=_no_job, timeout_s=15),
)
