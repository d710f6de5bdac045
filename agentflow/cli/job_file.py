"""What a job file says, typed. The keys of a file are the fields of these structs and of `JobSettings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agentflow.plan.agent_documents import AgentDocument
from agentflow.plan.file_problems import Place
from agentflow.runtime.codecs import RECORD_KEY
from agentflow.runtime.settings import DurationMs, JobSettings, PositiveMs, SizeBytes

ColumnTypes = Annotated[Mapping[str, str], Meta(extra={"unit": "names and types"})]
_CODEC_NAMES = "json, msgpack, string, bytes, or module:name of your own codec"


class _Section(msgspec.Struct, frozen=True, kw_only=True):
    """Sections are immutable."""

    @property
    def kind(self) -> str:
        """What a source or sink is called: ``jsonl``."""
        return str(self.__struct_config__.tag)

    @property
    def described(self) -> str:
        """A source or sink for people: ``jsonl out/``."""
        path = getattr(self, "path", ())
        return " ".join([self.kind, *([path] if isinstance(path, str) else path)])


class JsonlSource(_Section, frozen=True, kw_only=True, tag="jsonl"):
    """JSON Lines files, one value per line."""

    path: Annotated[tuple[str, ...], Meta(description="File, pattern (data/*.jsonl), or list of them.")]
    follow: Annotated[
        bool,
        Meta(
            description="Read files on as they grow, and new ones, until the job is stopped; a directory is a path then too."
        ),
    ] = False
    poll_interval_ms: Annotated[
        PositiveMs | None,
        Meta(
            description="With follow: look so often, where the file system tells of no changes (NFS); null: it tells."
        ),
    ] = None
    rotate_wait_ms: Annotated[
        DurationMs,
        Meta(description="With follow: how long a file is read on that was renamed to what no path or pattern finds."),
    ] = 5_000

    @property
    def described(self) -> str:
        """For people: ``jsonl logs/*.jsonl, followed``."""
        return f"jsonl {' '.join(self.path)}{', followed' if self.follow else ''}"


class CsvSource(_Section, frozen=True, kw_only=True, tag="csv"):
    """CSV files, one value per row."""

    path: Annotated[tuple[str, ...], Meta(description="File, pattern (data/*.csv), or list of them.")]
    header: Annotated[bool, Meta(description="The first row of a file names the columns.")] = True
    columns: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="With a header: read these columns only; null: all. Without one: what the columns are called."
        ),
    ] = None
    delimiter: Annotated[str, Meta(description="Character between fields.", extra={"verbatim": True})] = ","
    quote: Annotated[
        str | None,
        Meta(
            description="Character around fields with delimiters or newlines in them; null: there is none.",
            extra={"verbatim": True},
        ),
    ] = '"'
    encoding: Annotated[str, Meta(description="Encoding of the text, as Python names it.")] = "utf-8"
    null_values: Annotated[
        tuple[str, ...], Meta(description="Texts that mean null, in any column.", extra={"verbatim": True})
    ] = ("",)
    types: Annotated[
        ColumnTypes | None, Meta(description="Columns and their types; those of the others are found out, or text.")
    ] = None
    infer_types: Annotated[
        bool,
        Meta(description="Find out types from the first 1,000 rows of a file: int64, double, boolean, else string."),
    ] = True


class ParquetSource(_Section, frozen=True, kw_only=True, tag="parquet"):
    """Parquet files, one value per row."""

    path: Annotated[tuple[str, ...], Meta(description="File, pattern (data/*.parquet), or list of them.")]
    columns: Annotated[tuple[str, ...] | None, Meta(description="Read these columns only; null: all.")] = None


class ArrowSource(_Section, frozen=True, kw_only=True, tag="arrow"):
    """Arrow IPC files (Feather) and streams, one value per row."""

    path: Annotated[tuple[str, ...], Meta(description="File, pattern (data/*.arrow), or list of them.")]
    columns: Annotated[tuple[str, ...] | None, Meta(description="Read these columns only; null: all.")] = None


class StdinSource(_Section, frozen=True, kw_only=True, tag="stdin"):
    """Standard input, one JSON value per line; it cannot be read twice."""


class HttpSource(_Section, frozen=True, kw_only=True, tag="http"):
    """Records by POST, answered when they are durable; it does not end. JSON, or JSON lines; Idempotency-Key accepts each once."""

    host: Annotated[str, Meta(description="Address to listen on; 0.0.0.0: all. There is no authentication.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, description="Port; 0: any free one.")] = 8080
    path: Annotated[str, Meta(description="Path of the endpoint, from / on.")] = "/records"
    body_max_bytes: Annotated[SizeBytes, Meta(description="Largest body of a request.")] = 16 * 2**20

    @property
    def described(self) -> str:
        """For people: ``http 127.0.0.1:8080/records``."""
        return f"http {self.host}:{self.port}{self.path}"


class PythonSource(_Section, frozen=True, kw_only=True, tag="python"):
    """An async generator function of your own, or a class that is a Source."""

    function: Annotated[
        str,
        Meta(
            description="module:name of an async generator function; with a parameter 'position' it is exactly-once. Or of a "
            "class with the methods of a Source."
        ),
    ]
    options: Annotated[dict[str, Any], Meta(description="Further arguments, by name (- is _).")] = {}

    @property
    def described(self) -> str:
        """For people: ``python shop.sources:orders``."""
        return f"python {self.function}"


class KafkaSource(_Section, frozen=True, kw_only=True, tag="kafka"):
    """Topics of equal partition counts. Run it with agentflow worker."""

    topics: Annotated[tuple[str, ...], Meta(description="Input topic, or list of them.")]
    value: Annotated[str, Meta(description=f"How values are encoded: {_CODEC_NAMES}.")] = "json"
    on_offset_reset: Annotated[
        Literal["fail", "earliest", "latest"],
        Meta(
            description="When the next record is not there any more: stop, or go on with what is left (and lose the rest)."
        ),
    ] = "fail"
    idle_timeout_ms: Annotated[
        PositiveMs | None,
        Meta(description="A partition without records for so long does not hold the watermark; null: it always does."),
    ] = None

    @property
    def described(self) -> str:
        """For people: ``kafka reviews``."""
        return f"kafka {', '.join(self.topics)}"


class KafkaDeadLetters(_Section, frozen=True, kw_only=True, tag="kafka"):
    """A topic: records as they came, the reason in headers beside their own."""

    topic: Annotated[str, Meta(description="Dead-letter topic.")]

    @property
    def described(self) -> str:
        """For people: ``kafka alerts-dlq``."""
        return f"kafka {self.topic}"


class KafkaSink(_Section, frozen=True, kw_only=True, tag="kafka"):
    """A topic; keys are those of the job."""

    topic: Annotated[str, Meta(description="Output topic.")]
    value: Annotated[str, Meta(description=f"How values are encoded: {_CODEC_NAMES}.")] = "json"

    @property
    def described(self) -> str:
        """For people: ``kafka alerts``."""
        return f"kafka {self.topic}"


class JsonlSink(_Section, frozen=True, kw_only=True, tag="jsonl"):
    """A directory of part-… files of JSON lines; names that start with . or _ are staging, readers skip them."""

    path: Annotated[str, Meta(description="Directory of the part-… files; relative to the current directory.")]


class CsvSink(_Section, frozen=True, kw_only=True, tag="csv"):
    """A directory of part-… CSV files, one row per output; names that start with . or _ are staging, readers skip them."""

    path: Annotated[str, Meta(description="Directory of the part-… files; relative to the current directory.")]
    header: Annotated[bool, Meta(description="The first row of a file names the columns.")] = True
    columns: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="Columns; null: those of the newest file, else those that outputs of the first checkpoint have."
        ),
    ] = None
    delimiter: Annotated[str, Meta(description="Character between fields.", extra={"verbatim": True})] = ","
    quote: Annotated[
        str, Meta(description="Character around fields with delimiters or newlines in them.", extra={"verbatim": True})
    ] = '"'
    null_value: Annotated[str, Meta(description="What is written for null.", extra={"verbatim": True})] = ""


_SCHEMA = Meta(
    description="Columns and types; null: those of the newest file, else those that outputs of the first checkpoint have."
)


class ParquetSink(_Section, frozen=True, kw_only=True, tag="parquet"):
    """A directory of part-… Parquet files, one row per output; names that start with . or _ are staging, readers skip them."""

    path: Annotated[str, Meta(description="Directory of the part-… files; relative to the current directory.")]
    schema: Annotated[ColumnTypes | None, _SCHEMA] = None
    compression: Annotated[
        Literal["zstd", "snappy", "gzip", "lz4", "brotli", "none"], Meta(description="Codec of the columns.")
    ] = "zstd"


class ArrowSink(_Section, frozen=True, kw_only=True, tag="arrow"):
    """A directory of part-… Arrow IPC files (Feather), one row per output; names that start with . or _ are staging."""

    path: Annotated[str, Meta(description="Directory of the part-… files; relative to the current directory.")]
    schema: Annotated[ColumnTypes | None, _SCHEMA] = None
    compression: Annotated[
        Literal["none", "lz4", "zstd"],
        Meta(description="Codec of the buffers; without one, readers can map files into memory."),
    ] = "none"


class PythonSink(_Section, frozen=True, kw_only=True, tag="python"):
    """A function of your own, called with the outputs of each checkpoint, or a class that is a Sink."""

    function: Annotated[
        str,
        Meta(
            description="module:name of a function of a list of OutputRecord; at-least-once, or idempotent where it is decorated so. "
            "Or of a class with the methods of a Sink."
        ),
    ]
    options: Annotated[dict[str, Any], Meta(description="Further arguments, by name (- is _).")] = {}
    idempotent: Annotated[
        bool, Meta(description="The function may be given the same outputs again: they have the same ids.")
    ] = False
    buffer_bytes: Annotated[
        SizeBytes, Meta(description="Size of the outputs that wait for a function, at which nothing more is read.")
    ] = 64 * 2**20

    @property
    def described(self) -> str:
        """For people: ``python shop.sinks:store``."""
        return f"python {self.function}"


class StdoutSink(_Section, frozen=True, kw_only=True, tag="stdout"):
    """Standard output, one JSON value per line; at-least-once."""


FileSource = JsonlSource | CsvSource | ParquetSource | ArrowSource
FileSink = JsonlSink | CsvSink | ParquetSink | ArrowSink


class LogSettings(_Section, frozen=True, kw_only=True):
    """`log.*`"""

    format: Annotated[
        Literal["auto", "console", "json"],
        Meta(description="How log lines look; auto: console on a terminal, json elsewhere."),
    ] = "auto"
    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level of the engine's log lines.")
    ] = "info"


class Composition(_Section, frozen=True, kw_only=True):
    """The keys beside those of `JobSettings`."""

    agent: Annotated[
        str,
        Meta(
            description="The agent: module:name of an Agent class or instance; agents.yaml or agents.yaml#name, or the name of one of this file's agents."
        ),
    ]
    source: Annotated[
        FileSource | StdinSource | HttpSource | KafkaSource | PythonSource, Meta(description="Where records come from.")
    ]
    sink: Annotated[FileSink | StdoutSink | KafkaSink | PythonSink, Meta(description="Where outputs go.")]
    dead_letter: Annotated[
        FileSink | StdoutSink | KafkaDeadLetters | PythonSink | None,
        Meta(description="Where records go whose run failed; without it the job stops."),
    ] = None
    key_by: Annotated[
        str,
        Meta(
            description="The key of a record: a field (dotted path), module:function of the value, or record.key (Kafka)."
        ),
    ] = RECORD_KEY
    event_listeners: Annotated[
        tuple[str, ...],
        Meta(
            description="Functions that are called with each record of the event log: module:function, or a list of them."
        ),
    ] = ()
    log: LogSettings = LogSettings()


class JobFile(msgspec.Struct, frozen=True):
    """A job file with profile, environment and flags laid over it.

    Attributes:
        path: As it was given.
        settings: Settings of the engine.
        composition: Agent, key, source, sinks, log.
        config: Options of the job for its agents, by dotted key.
        places: Dotted key → where its value was set; keys at their default are not in it.
        document: Agents and resources that the file itself holds; None: none.
    """

    path: str
    settings: JobSettings
    composition: Composition
    config: dict[str, Any]
    places: dict[str, Place]
    document: AgentDocument | None = None

    def place(self, *keys: str) -> Place:
        """Return where the first of ``keys`` that was set was set; the file itself when none was."""
        for key in keys:
            for name, place in self.places.items():
                if name == key or name.startswith(f"{key}."):
                    return place
        return Place(self.path)
