"""Typed settings of a job: one section each, the same names in job files, environment variables, flags and code.

A field `interval_ms` of section `checkpoint` is the key ``checkpoint.interval``: the unit is in the value (``"1s"``) and the
suffix names what the engine holds. `Meta(description=…)` is the documentation of a key.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from agentflow.api.events import EventType

DurationMs = Annotated[int, Meta(ge=0, extra={"unit": "duration"})]
PositiveMs = Annotated[int, Meta(ge=1, extra={"unit": "duration"})]
SizeBytes = Annotated[int, Meta(ge=0, extra={"unit": "size"})]
PositiveBytes = Annotated[int, Meta(ge=1, extra={"unit": "size"})]
Count = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
_BOUND = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m)")
_DEFAULT_BOUNDS = (
    "10us", "100us", "1ms", "5ms", "10ms", "50ms", "100ms", "250ms", "500ms", "1s", "2.5s", "5s", "10s", "30s", "1m", "5m",
)  # fmt: skip
_BOUND_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}


def key_name(field: str) -> str:
    """Return the name of a field as a key."""
    return field.removesuffix("_ms").removesuffix("_bytes").replace("_", "-")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sections are immutable."""


class CheckpointSettings(_Section, frozen=True):
    """`checkpoint.*`"""

    interval_ms: Annotated[
        PositiveMs, Meta(description="Time between checkpoints; outputs become visible with them.")
    ] = 1_000
    timeout_ms: Annotated[
        DurationMs, Meta(description="A checkpoint that takes longer fails; the subtask restarts.")
    ] = 600_000


class StateSettings(_Section, frozen=True):
    """`state.*`"""

    dir: Annotated[
        str | None, Meta(description="Directory of keyed state; null keeps it in memory, lost with the process.")
    ] = None
    ttl_ms: Annotated[DurationMs | None, Meta(description="Time to live of short-term memory since its last use.")] = (
        None
    )
    ttl_update: Annotated[
        Literal["on-create-and-write", "on-read-and-write"], Meta(description="What counts as use for the TTL.")
    ] = "on-create-and-write"
    value_max_bytes: Annotated[SizeBytes, Meta(description="Largest memory value; a larger one fails its run.")] = (
        64 * 2**20
    )
    cache_bytes: Annotated[SizeBytes, Meta(description="Memory of idle keys that is kept in process memory.")] = (
        64 * 2**20
    )
    free_min_bytes: Annotated[SizeBytes, Meta(description="Free disk space below which checkpoints are refused.")] = (
        64 * 2**20
    )


class RunSettings(_Section, frozen=True):
    """`run.*`: limits of runs."""

    in_flight_max: Annotated[
        Count, Meta(description="Unfinished runs at which the source is paused; parked ones count until a checkpoint.")
    ] = 10_000
    sleeping_max: Annotated[
        Count, Meta(description="Parked runs that sleep or wait for a signal, at which the source is paused.")
    ] = 1_000_000
    park_after_ms: Annotated[
        PositiveMs, Meta(description="How long the coroutine of a run is kept that only sleeps or waits.")
    ] = 10_000
    accept_changes: Annotated[
        bool,
        Meta(
            description="Start although unfinished runs would diverge from a changed agent (--accept); they fail, one by one."
        ),
    ] = False
    tasks_max: Annotated[
        Count, Meta(description="Action tasks after which a run is taken for an endless cycle of events.")
    ] = 10_000


class KeySettings(_Section, frozen=True):
    """`key.*`: limits per key."""

    pending_max: Annotated[Count, Meta(description="Inputs that may wait behind one busy key.")] = 10_000


class RequestIdSettings(_Section, frozen=True):
    """`request-id.*`: answers to requests of an embedded engine."""

    retention_ms: Annotated[
        PositiveMs, Meta(description="How long an answer is kept: the same request id gets it without another run.")
    ] = 86_400_000


class SignalSettings(_Section, frozen=True):
    """`signals.*`: messages to runs that wait (`ctx.wait_for`)."""

    topic: Annotated[
        str | None, Meta(description="Topic that a Kafka job reads signals from; null: it takes none.")
    ] = None
    ttl_ms: Annotated[PositiveMs, Meta(description="How long a signal is kept that nobody waits for yet.")] = (
        7 * 86_400_000
    )
    pending_max: Annotated[
        Count, Meta(description="Such signals in one subtask; one more is dead-lettered, or fails the job.")
    ] = 100_000


class JournalSettings(_Section, frozen=True):
    """`journal.*`: records of durable steps."""

    sync: Annotated[
        Literal["always", "interval"],
        Meta(
            description="always: a step waits until the disk has its record; interval: it does not, a process that is killed "
            "loses nothing, a machine that loses power the last sync-interval. Kafka jobs: always."
        ),
    ] = "always"
    sync_interval_ms: Annotated[PositiveMs, Meta(description="Time between syncs, with sync: interval.")] = 100


class SavepointSettings(_Section, frozen=True):
    """`savepoint.*`"""

    dir: Annotated[
        str | None,
        Meta(
            description="Directory, or URL of a prefix of an object store, where savepoints are kept, unless a command names another one."
        ),
    ] = None


class TimerSettings(_Section, frozen=True):
    """`timer.*`"""

    pending_max: Annotated[
        Count, Meta(description="Timers that may be set in one subtask; one more fails the task.")
    ] = 1_000_000


class BlockingSettings(_Section, frozen=True):
    """`blocking.*`: threads of blocking actions, plain tools and plain steps."""

    threads_max: Annotated[
        Count, Meta(description="Blocking actions, and plain tools and steps, that run at once.")
    ] = 32
    leaked_max: Annotated[
        Count,
        Meta(description="Threads left behind by timed-out actions, tools and steps at which the subtask restarts."),
    ] = 16


class RestartSettings(_Section, frozen=True):
    """`restart.*`: after infrastructure errors."""

    strategy: Annotated[
        Literal["exponential", "fixed-delay", "none"], Meta(description="How to restart after an infrastructure error.")
    ] = "exponential"
    delay_ms: Annotated[DurationMs, Meta(description="(First) delay before a restart.")] = 1_000
    delay_max_ms: Annotated[DurationMs, Meta(description="Longest delay (exponential).")] = 60_000
    attempts: Annotated[
        Count, Meta(description="Restarts before the job fails; a completed checkpoint resets the count.")
    ] = 10

    def delay_before(self, attempt: int) -> int:
        """Return the delay before the so many-th restart in a row, in milliseconds."""
        if self.strategy != "exponential":
            return self.delay_ms
        doublings = min(attempt - 1, 32)
        return min(self.delay_max_ms, self.delay_ms << doublings)


class ShutdownSettings(_Section, frozen=True):
    """`shutdown.*`"""

    drain_timeout_ms: Annotated[DurationMs, Meta(description="How long SIGTERM waits for runs in flight.")] = 10_000


class EventTimeSettings(_Section, frozen=True):
    """`event-time.*`"""

    field: Annotated[
        str | None,
        Meta(description="Field with the timestamp: epoch ms, or ISO 8601 text; null: the record's own (Kafka)."),
    ] = None
    watermarks: Annotated[
        Literal["none", "ascending", "bounded-out-of-orderness"] | None,
        Meta(description="Watermark strategy; null: bounded-out-of-orderness where a field is named, else none."),
    ] = None
    max_out_of_orderness_ms: Annotated[
        DurationMs, Meta(description="The watermark stays this far behind the latest timestamp.")
    ] = 0


class SecuritySettings(_Section, frozen=True):
    """`kafka.security.*`: TLS and SASL. Secrets are best written as ``${env:…}`` or ``${file:…}``; they are never logged."""

    protocol: Annotated[
        Literal["plaintext", "ssl", "sasl-plaintext", "sasl-ssl"], Meta(description="As Kafka's security.protocol.")
    ] = "plaintext"
    mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None, Meta(description="SASL mechanism.")
    ] = None
    username: Annotated[str | None, Meta(description="SASL user.")] = None
    password: Annotated[str | None, Meta(description="SASL password.", extra={"secret": True})] = None
    token_file: Annotated[
        str | None, Meta(description="File with the OAUTHBEARER token; read again for each connection.")
    ] = None
    ca_file: Annotated[str | None, Meta(description="PEM file of the broker's CA; null: those of the system.")] = None
    certificate_file: Annotated[str | None, Meta(description="PEM file of the client's certificate (mTLS).")] = None
    key_file: Annotated[str | None, Meta(description="PEM file of the client's private key (mTLS).")] = None
    key_password: Annotated[str | None, Meta(description="Password of the private key.", extra={"secret": True})] = None
    check_hostname: Annotated[bool, Meta(description="Whether the broker's certificate has to carry its name.")] = True

    def __repr__(self) -> str:
        """Leave the secrets out."""
        return f"SecuritySettings(protocol={self.protocol!r}, mechanism={self.mechanism!r}, username={self.username!r})"


class KafkaSettings(_Section, frozen=True):
    """`kafka.*`: brokers, group membership, transactions."""

    brokers: Annotated[str, Meta(description="Bootstrap servers: host:port, several with commas.")] = "localhost:9092"
    instance_id: Annotated[
        str | None, Meta(description="Static membership: a name of this worker that survives its restarts.")
    ] = None
    session_timeout_ms: Annotated[
        PositiveMs, Meta(description="Silence after which the group takes a worker for dead.")
    ] = 45_000
    heartbeat_interval_ms: Annotated[PositiveMs, Meta(description="Time between signs of life to the group.")] = 1_000
    transaction_timeout_ms: Annotated[
        PositiveMs, Meta(description="Age at which the broker aborts an open transaction; above checkpoint.interval.")
    ] = 60_000
    partitioner: Annotated[
        Literal["auto", "murmur2", "crc32"],
        Meta(
            description="How keys are spread: murmur2 (Java, aiokafka), crc32 (librdkafka), or as the input shows at first "
            "(murmur2 where the key is not the record's). Checkpoints keep it: it cannot be changed."
        ),
    ] = "auto"
    partitioner_check: Annotated[
        bool,
        Meta(
            description="Look at start, and at the first records that come, whether the input lies where the partitioner puts it."
        ),
    ] = True
    security: SecuritySettings = SecuritySettings()


class ObjectStoreSettings(_Section, frozen=True):
    """`object-store.*`: how paths s3://, gs:// and az:// are reached.

    What is null comes from the vendor's environment variables (AWS_…, GOOGLE_…, AZURE_…) or from the machine's own identity. Secrets are
    best written as ``${env:…}`` or ``${file:…}``; they are never logged.
    """

    endpoint: Annotated[
        str | None, Meta(description="URL of a server that speaks the protocol, such as http://localhost:9000.")
    ] = None
    region: Annotated[str | None, Meta(description="Region of the buckets (S3).")] = None
    path_style: Annotated[
        bool, Meta(description="The bucket is in the path of requests, not in their host name (S3).")
    ] = True
    anonymous: Annotated[bool, Meta(description="Send requests without credentials, for what is public.")] = False
    access_key_id: Annotated[str | None, Meta(description="Access key (S3).")] = None
    secret_access_key: Annotated[str | None, Meta(description="Its secret.", extra={"secret": True})] = None
    session_token: Annotated[
        str | None, Meta(description="Token of temporary credentials.", extra={"secret": True})
    ] = None
    service_account_file: Annotated[str | None, Meta(description="JSON file of a service account (Google).")] = None
    account: Annotated[str | None, Meta(description="Storage account (Azure).")] = None
    account_key: Annotated[str | None, Meta(description="Its key.", extra={"secret": True})] = None
    timeout_ms: Annotated[PositiveMs, Meta(description="How long one request may take.")] = 30_000
    retry_timeout_ms: Annotated[
        DurationMs,
        Meta(description="How long a request that fails for a moment is repeated; then the subtask restarts."),
    ] = 30_000

    def __repr__(self) -> str:
        """Leave the secrets out."""
        return f"ObjectStoreSettings(endpoint={self.endpoint!r}, region={self.region!r}, anonymous={self.anonymous!r})"


class AdminSettings(_Section, frozen=True):
    """`admin.*`: /livez, /readyz and /metrics, over HTTP."""

    host: Annotated[str, Meta(description="Address to listen on; 127.0.0.1 keeps it on this machine.")] = "0.0.0.0"  # noqa: S104
    port: Annotated[
        Port | None,
        Meta(description="Port; 0: any free one; null: no HTTP. Process n of --processes takes port + n."),
    ] = None


class OtlpSettings(_Section, frozen=True):
    """`otlp.*`: the collector that metrics, traces and records of the event log are pushed to, OTLP over HTTP (protobuf)."""

    endpoint: Annotated[
        str | None,
        Meta(
            description="Base URL of the collector; null: as OpenTelemetry's variables OTEL_EXPORTER_OTLP_… say, else http://localhost:4318."
        ),
    ] = None


class MetricsSettings(_Section, frozen=True):
    """`metrics.*`; `admin.port` serves them too, as Prometheus text."""

    otlp: Annotated[bool, Meta(description="Push metrics to the collector of otlp.endpoint.")] = False
    file: Annotated[
        str | None,
        Meta(description="JSON file that is replaced each interval; one named .jsonl gets a line more. null: none."),
    ] = None
    interval_ms: Annotated[PositiveMs, Meta(description="Time between pushes, and between writes of the file.")] = (
        15_000
    )
    histogram_buckets: Annotated[
        tuple[str, ...],
        Meta(description="Upper bounds of the buckets of durations, ascending (units: us, ms, s, m)."),
    ] = _DEFAULT_BOUNDS
    cardinality_max: Annotated[
        Count, Meta(description="Sets of attributes that a metric may have; others are counted together.")
    ] = 1_000

    def bounds_ns(self) -> tuple[int, ...]:
        """Return the upper bounds of buckets in nanoseconds.

        Raises:
            ValueError: One is no duration, or not above the one before.
        """
        bounds: list[int] = []
        for text in self.histogram_buckets:
            match = _BOUND.fullmatch(text)
            if match is None:
                msg = f"{text!r} is not a duration; write a number with a unit (us, ms, s, m), such as '250us'"
                raise ValueError(msg)
            bounds.append(round(float(match[1]) * _BOUND_NS[match[2]]))
            if bounds[-1] <= max(bounds[:-1], default=0):
                msg = f"{text!r} is not above the bound before it"
                raise ValueError(msg)
        return tuple(bounds)


class TracingSettings(_Section, frozen=True):
    """`tracing.*`: spans of runs, actions and steps, pushed to the collector of `otlp.endpoint`."""

    enabled: Annotated[bool, Meta(description="Trace runs.")] = False
    sample_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of the runs that are traced, of those whose caller has not decided; runs that fail always are.",
        ),
    ] = 0.01


class TopicSettings(_Section, frozen=True):
    """`topics.*`: topics that do not exist when a worker starts."""

    create: Annotated[bool, Meta(description="Create them: changelog, repartition topics, outputs, dead letters.")] = (
        True
    )
    partitions: Annotated[
        Count | None, Meta(description="Create input topics too, with so many partitions; null: they have to exist.")
    ] = None
    replication_factor: Annotated[
        Count | None, Meta(description="Replicas of topics that are created; null: 3, or as many as there are brokers.")
    ] = None


EVENT_TYPES = (EventType.InputEvent, EventType.OutputEvent, EventType.TimerEvent, EventType.CancelEvent)
"""Types of records that agentflow writes of itself; `event-log.type.<TYPE>` knows them."""


class EventTypeSettings(_Section, frozen=True):
    """`event-log.type.<TYPE>.*`: one type of event, or all whose names begin with it and a dot."""

    level: Annotated[
        Literal["off", "standard", "verbose"] | None,
        Meta(description="Level of events of this type, and of types below it; null: that of the type above."),
    ] = None


class TruncationSettings(_Section, frozen=True):
    """`event-log.standard.*`: what level standard leaves out of large values; 0 leaves out nothing."""

    max_string_length: Annotated[int, Meta(ge=0, description="Characters that are kept of a longer text.")] = 2_000
    max_array_elements: Annotated[int, Meta(ge=0, description="Elements that are kept of a longer list.")] = 20
    max_depth: Annotated[
        int, Meta(ge=0, description="Depth at which objects keep their plain fields only; the attributes are depth 1.")
    ] = 5


class EventTraceSettings(_Section, frozen=True):
    """`event-log.trace.*`"""

    enabled: Annotated[
        bool, Meta(description="Write when actions, steps and what they report begin and end, and who began what.")
    ] = False


class RotationSettings(_Section, frozen=True):
    """`event-log.rotation.*`: when a file is followed by the next."""

    size_bytes: Annotated[PositiveBytes, Meta(description="Size above which the next file is begun.")] = 64 * 2**20
    age_ms: Annotated[PositiveMs | None, Meta(description="Age of a file at which the next one is begun.")] = 86_400_000


class RetentionSettings(_Section, frozen=True):
    """`event-log.retention.*`: when old files of a subtask are deleted; the one that is written never is."""

    files: Annotated[Count | None, Meta(description="Files that are kept of a subtask; null: any number.")] = 16
    size_bytes: Annotated[SizeBytes | None, Meta(description="Bytes that all of them may have; null: any number.")] = (
        None
    )
    age_ms: Annotated[PositiveMs | None, Meta(description="Files that were last written before are deleted.")] = None


class EventFilterSettings(_Section, frozen=True):
    """`event-log.include.*`, `event-log.exclude.*`: patterns in which * stands for any text."""

    types: Annotated[tuple[str, ...], Meta(description="Types of events.")] = ()
    keys: Annotated[tuple[str, ...], Meta(description="Keys of runs; those that are no text as JSON.")] = ()
    actions: Annotated[
        tuple[str, ...], Meta(description="Actions; it says nothing about records that have none, such as inputs.")
    ] = ()


class EventLogKafkaSettings(_Section, frozen=True):
    """`event-log.kafka.*`: target kafka, at the brokers of the section kafka."""

    topic: Annotated[str | None, Meta(description="Topic of the records; null: {job}-event-log.")] = None


class EventLogSettings(_Section, frozen=True):
    """`event-log.*`: what happened in runs, a record for each event."""

    level: Annotated[
        Literal["off", "standard", "verbose"],
        Meta(description="standard: large values are cut; verbose: they are not; off: nothing is written."),
    ] = "off"
    type: Annotated[
        dict[str, EventTypeSettings],
        Meta(
            description="Levels by type of event; dots in a type's name make a hierarchy.",
            extra={"name": "TYPE", "known": EVENT_TYPES},
        ),
    ] = {}
    standard: TruncationSettings = TruncationSettings()
    trace: EventTraceSettings = EventTraceSettings()
    target: Annotated[tuple[Literal["file", "stdout", "kafka", "otel"], ...], Meta(description="Where records go.")] = (
        "file",
    )
    dir: Annotated[str, Meta(description="Directory of the files.")] = "logs"
    rotation: RotationSettings = RotationSettings()
    retention: RetentionSettings = RetentionSettings()
    sampling: Annotated[
        float, Meta(ge=0, le=1, description="Share of runs whose records are written; a run is written whole or not.")
    ] = 1.0
    include: EventFilterSettings = EventFilterSettings()
    exclude: EventFilterSettings = EventFilterSettings()
    buffer_bytes: Annotated[
        PositiveBytes, Meta(description="Records that a target has not taken yet; above it new ones are dropped.")
    ] = 64 * 2**20
    flush_interval_ms: Annotated[PositiveMs, Meta(description="Longest time that a record is buffered.")] = 200
    kafka: EventLogKafkaSettings = EventLogKafkaSettings()

    @property
    def is_on(self) -> bool:
        """Whether anything is written: the level is not off, or that of a type is not."""
        return any(level not in (None, "off") for level in (self.level, *(one.level for one in self.type.values())))


class StreamKafkaSettings(_Section, frozen=True):
    """`streams.kafka.*`: a topic at the brokers of the section kafka."""

    topic: Annotated[
        str | None, Meta(description="Topic that chunks go to, at most once, keyed as the job is; null: none.")
    ] = None


class StreamSettings(_Section, frozen=True):
    """`streams.*`: what actions say while they work (`ctx.stream`); it is never waited for, and not durable."""

    run_buffer_bytes: Annotated[
        PositiveBytes, Meta(description="Chunks of a run that an engine keeps for its callers; the oldest are dropped.")
    ] = 2**20
    buffer_bytes: Annotated[
        PositiveBytes,
        Meta(
            description="Chunks of all runs that are kept, and those that the topic has not taken; above it the oldest are dropped."
        ),
    ] = 64 * 2**20
    kafka: StreamKafkaSettings = StreamKafkaSettings()


class RedactionSettings(_Section, frozen=True):
    """`redaction.*`: what telemetry and previews leave out of values, before they are written anywhere."""

    secret_names: Annotated[
        bool, Meta(description="Redact fields whose names say so: password, secret, token, api key, credential, ….")
    ] = True
    fields: Annotated[
        tuple[str, ...],
        Meta(description="Names of fields beside those; * stands for any text; case, - and _ do not count."),
    ] = ()
    paths: Annotated[
        tuple[str, ...], Meta(description="Paths in inputs, outputs and events: $.customer.email, $.items[*].card.")
    ] = ()
    patterns: Annotated[
        tuple[str, ...], Meta(description="Regular expressions; what they match in texts and numbers is redacted.")
    ] = ()
    key: Annotated[bool, Meta(description="Redact the business key.")] = False
    replacement: Annotated[
        Literal["mask", "hash"], Meta(description="mask: ***; hash: a keyed hash, the same for the same value.")
    ] = "mask"
    hash_key: Annotated[
        str | None, Meta(description="Key of the hash, at least 16 characters.", extra={"secret": True})
    ] = None

    def __repr__(self) -> str:
        """Leave the secret out."""
        return f"RedactionSettings(fields={self.fields!r}, paths={self.paths!r}, patterns={self.patterns!r})"


class JobSettings(_Section, frozen=True):
    """Everything about a job but its agent, source and sinks."""

    job: Annotated[
        str, Meta(description="Name of the job; its state belongs to it.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    ] = "agentflow"
    guarantee: Annotated[
        Literal["exactly-once", "at-least-once", "none"],
        Meta(description="What the job must give; a source or sink that cannot give it is an error."),
    ] = "exactly-once"
    record_max_bytes: Annotated[SizeBytes, Meta(description="Largest record, event or output.")] = 4 * 2**20
    on_overflow: Annotated[Literal["pause", "dead-letter"], Meta(description="What happens above key.pending-max.")] = (
        "pause"
    )
    checkpoint: CheckpointSettings = CheckpointSettings()
    state: StateSettings = StateSettings()
    run: RunSettings = RunSettings()
    key: KeySettings = KeySettings()
    request_id: RequestIdSettings = RequestIdSettings()
    signals: SignalSettings = SignalSettings()
    journal: JournalSettings = JournalSettings()
    savepoint: SavepointSettings = SavepointSettings()
    timer: TimerSettings = TimerSettings()
    blocking: BlockingSettings = BlockingSettings()
    restart: RestartSettings = RestartSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    event_time: EventTimeSettings = EventTimeSettings()
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    object_store: ObjectStoreSettings = ObjectStoreSettings()
    admin: AdminSettings = AdminSettings()
    event_log: EventLogSettings = EventLogSettings()
    streams: StreamSettings = StreamSettings()
    redaction: RedactionSettings = RedactionSettings()
    otlp: OtlpSettings = OtlpSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
