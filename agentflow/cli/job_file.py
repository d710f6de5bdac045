"""What a job file says, typed. The keys of a file are the fields of these structs and of `JobSettings`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agentflow.cli.problems import Place
from agentflow.runtime.codecs import RECORD_KEY
from agentflow.runtime.settings import JobSettings, PositiveMs

_CODEC_NAMES = "json, msgpack, string, bytes, or module:name of your own codec"


class _Section(msgspec.Struct, frozen=True, kw_only=True):
    """Sections are immutable."""

    @property
    def described(self) -> str:
        """A source or sink for people: ``jsonl out/``."""
        path = getattr(self, "path", ())
        return " ".join([str(self.__struct_config__.tag), *([path] if isinstance(path, str) else path)])


class JsonlSource(_Section, frozen=True, kw_only=True, tag="jsonl"):
    """JSON Lines files, one value per line."""

    path: Annotated[tuple[str, ...], Meta(description="File, pattern (data/*.jsonl), or list of them.")]


class StdinSource(_Section, frozen=True, kw_only=True, tag="stdin"):
    """Standard input, one JSON value per line; it cannot be read twice."""


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


class StdoutSink(_Section, frozen=True, kw_only=True, tag="stdout"):
    """Standard output, one JSON value per line; at-least-once."""


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

    agent: Annotated[str, Meta(description="The agent: module:name of an Agent class or instance.")]
    source: Annotated[JsonlSource | StdinSource | KafkaSource, Meta(description="Where records come from.")]
    sink: Annotated[JsonlSink | StdoutSink | KafkaSink, Meta(description="Where outputs go.")]
    dead_letter: Annotated[
        JsonlSink | StdoutSink | KafkaDeadLetters | None,
        Meta(description="Where records go whose run failed; without it the job stops."),
    ] = None
    key_by: Annotated[
        str,
        Meta(
            description="The key of a record: a field (dotted path), module:function of the value, or record.key (Kafka)."
        ),
    ] = RECORD_KEY
    log: LogSettings = LogSettings()


class JobFile(msgspec.Struct, frozen=True):
    """A job file with profile, environment and flags laid over it.

    Attributes:
        path: As it was given.
        settings: Settings of the engine.
        composition: Agent, key, source, sinks, log.
        config: Options of the job for its agents, by dotted key.
        places: Dotted key → where its value was set; keys at their default are not in it.
    """

    path: str
    settings: JobSettings
    composition: Composition
    config: dict[str, Any]
    places: dict[str, Place]

    def place(self, *keys: str) -> Place:
        """Return where the first of ``keys`` that was set was set; the file itself when none was."""
        for key in keys:
            for name, place in self.places.items():
                if name == key or name.startswith(f"{key}."):
                    return place
        return Place(self.path)
