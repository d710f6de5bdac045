"""Sources and sinks of the user's own in a job file: functions, and classes that have the methods of a port."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any

from agentflow.api.codecs import JSON, MSGPACK, Codec
from agentflow.api.outputs import is_idempotent
from agentflow.cli.job_file import JobFile, PythonSink, PythonSource
from agentflow.connectors.function_sink import FunctionSink, check_sink_function
from agentflow.connectors.function_source import FunctionSource, check_source_function, takes_position
from agentflow.errors import AgentflowError, SinkError, SinkForbidden, SourceError
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.named_objects import find_named
from agentflow.runtime.ports import Sink, Source

_SOURCE_METHODS = ("open", "fetch", "close")
_SINK_METHODS = ("open", "write", "barrier", "stage", "publish", "close")


def load_connectors(job_file: JobFile, problems: ProblemList) -> dict[str, Any]:
    """Import the functions and classes that a job file names as source and sinks; return them by role.

    What they cannot promise is a problem as well.
    """
    composition, found = job_file.composition, {}
    named = {"source": composition.source, "sink": composition.sink, "dead-letter": composition.dead_letter}
    for role, section in named.items():
        if isinstance(section, PythonSource | PythonSink):
            place = job_file.place(f"{role}.python.function", f"{role}.python")
            told = f"{role} '{section.function}'"
            one = find_named(section.function, told, place, problems)
            if one is not None:
                found[role] = one
                if isinstance(section, PythonSource):
                    _check_source(one, section, told, job_file, place, problems)
                else:
                    _check_sink(one, section, told, job_file, place, problems)
    return found


def _check_source(
    found: Any,  # noqa: ANN401 (the user's)
    section: PythonSource,
    told: str,
    job_file: JobFile,
    place: Place,
    problems: ProblemList,
) -> None:
    if isinstance(found, type):
        _check_class(found, _SOURCE_METHODS, "Source", section.options, told, place, problems)
        return
    if _has(found, _SOURCE_METHODS):
        return
    if not isinstance(found, AsyncIterable):
        try:
            check_source_function(found, _arguments(section.options))
        except TypeError as error:
            problems.add(f"{told}: {error}", place)
            return
    guarantee = job_file.settings.guarantee
    if guarantee != "none" and (isinstance(found, AsyncIterable) or not takes_position(found)):
        problems.add(
            f"{told} cannot be read twice, so the job cannot be {guarantee}",
            place,
            note="a function with a parameter 'position' can, which yields values with positions",
            help="set  guarantee: none",
        )


def _check_sink(
    found: Any,  # noqa: ANN401 (the user's)
    section: PythonSink,
    told: str,
    job_file: JobFile,
    place: Place,
    problems: ProblemList,
) -> None:
    if isinstance(found, type):
        _check_class(found, _SINK_METHODS, "Sink", section.options, told, place, problems)
        return
    if _has(found, _SINK_METHODS):
        return
    try:
        check_sink_function(found, _arguments(section.options))
    except TypeError as error:
        problems.add(f"{told}: {error}", place)
        return
    if job_file.settings.guarantee == "exactly-once" and not (section.idempotent or is_idempotent(found)):
        problems.add(
            f"{told} is at-least-once, so the job cannot be exactly-once",
            place,
            note="where the same outputs again change nothing, decorate it with @agentflow.idempotent, or set idempotent: true",
            help="set  guarantee: at-least-once",
        )


def _check_class(
    found: type,
    methods: tuple[str, ...],
    port: str,
    options: Mapping[str, Any],
    told: str,
    place: Place,
    problems: ProblemList,
) -> None:
    missing = [name for name in methods if not callable(getattr(found, name, None))]
    if missing and not (port == "Source" and issubclass(found, AsyncIterable)):
        problems.add(
            f"{told}: the class {found.__name__} is no {port}: it has no {' and no '.join(missing)}",
            place,
            note=f"agentflow.runtime.ports.{port} says what is wanted",
        )
        return
    try:
        inspect.signature(found).bind(**_arguments(options))
    except TypeError as error:
        problems.add(f"{told}: the class {found.__name__} cannot be made with these options: {error}", place)
    except ValueError:  # written in C: it has no signature
        return


def _has(found: object, methods: tuple[str, ...]) -> bool:
    return all(callable(getattr(found, name, None)) for name in methods)


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in options.items()}


def source_codec(found: Any) -> Codec:  # noqa: ANN401 (the user's)
    """Return how the values of a source are encoded."""
    is_port = isinstance(found, type) or _has(found, _SOURCE_METHODS)
    codec = getattr(found, "codec", JSON) if is_port else MSGPACK
    return codec if hasattr(codec, "decode") else JSON


def own_source_opener(found: Any, section: PythonSource) -> Callable[[], Source]:  # noqa: ANN401 (the user's)
    """Return what makes the source, at each start of the job."""
    options = _arguments(section.options)
    if isinstance(found, type):
        return lambda: _as_source(_made(found, options, section.function, SourceError))
    source = _as_source(found, options)  # once: an iterator is not iterated again
    return lambda: source


def _as_source(found: Any, options: Mapping[str, Any] | None = None) -> Source:  # noqa: ANN401 (the user's)
    return found if _has(found, _SOURCE_METHODS) else FunctionSource(found, options=options)


def open_own_sink(found: Any, section: PythonSink) -> Sink:  # noqa: ANN401 (the user's)
    """Make the sink."""
    options = _arguments(section.options)
    if isinstance(found, type):
        made: Sink = _made(found, options, section.function, SinkForbidden)
        return made
    if _has(found, _SINK_METHODS):
        own: Sink = found
        return own
    return FunctionSink(found, options=options, idempotent=section.idempotent, buffer_max=section.buffer_bytes)


def _made(found: type, options: Mapping[str, Any], reference: str, kind: type[SourceError | SinkError]) -> Any:  # noqa: ANN401 (the user's)
    try:
        return found(**options)
    except AgentflowError:
        raise
    except Exception as error:
        raise kind(
            f"the class raised {type(error).__name__}: {error}",
            where={"class": reference},
            expected=f"that it can be made with {', '.join(options) or 'no arguments'}",
            fix="correct it, or its options",
        ) from error
