"""Finding what a job file names: the agent, in a Python module or a document, and the function of `key-by`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.api.codecs import CODECS, JSON, Codec
from agentflow.api.encoding import user_traceback
from agentflow.cli.values import AGENT_FILE
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.named_objects import (
    attribute_of,
    error_text,
    find_function,
    import_module,
    is_reference,
)
from agentflow.plan.problems import nearest

if TYPE_CHECKING:
    from agentflow.api.agent import Agent
    from agentflow.cli.job_file import JobFile
    from agentflow.plan.agent_documents import AgentDocument


class Program(msgspec.Struct, frozen=True):
    """The user's code of a job.

    Attributes:
        agent: The agent.
        key_by: A field (dotted path), or a function of the value.
        input_codec: Codec of the source.
        output_codec: Codec of a Kafka sink.
        connectors: What is the user's own, by role: ``source``, ``sink``, ``dead-letter``.
        event_listeners: Called with each record of the event log.
    """

    agent: Agent
    key_by: str | Callable[[Any], Any]
    input_codec: Codec
    output_codec: Codec
    connectors: dict[str, Any]
    event_listeners: tuple[Callable[[dict[str, Any]], object], ...] = ()


def load_program(job_file: JobFile) -> Program:
    """Import what a job file names. The current directory and that of the job file are searched first.

    Raises:
        JobFileError: With all problems; what the user's code raised is shown with the user's part of its traceback.
    """
    from agentflow.cli.own_connectors import load_connectors, source_codec

    _extend_path(job_file.path)
    problems = ProblemList()
    agent = _load_agent(job_file, problems)
    key_by: str | Callable[[Any], Any] | None = job_file.composition.key_by
    if ":" in job_file.composition.key_by:
        key_by = _load_key_function(job_file.composition.key_by, job_file.place("key-by"), problems)
    input_codec, output_codec = (
        _load_codec(getattr(job_file.composition, role), f"{role}.kafka.value", job_file, problems)
        for role in ("source", "sink")
    )
    connectors = load_connectors(job_file, problems)
    if "source" in connectors:
        input_codec = source_codec(connectors["source"])
    place = job_file.place("event-listeners")
    listeners = [_load_listener(one, place, problems) for one in job_file.composition.event_listeners]
    problems.raise_all()
    assert agent is not None, "no problem, but no agent"
    assert key_by is not None, "no problem, but no key"
    return Program(agent, key_by, input_codec, output_codec, connectors, tuple(listeners))


def _extend_path(job_file: str) -> None:
    folders = [os.getcwd(), os.path.dirname(os.path.abspath(job_file))]  # noqa: PTH100, PTH109, PTH120 (texts for sys.path)
    known = {os.path.abspath(entry) for entry in sys.path}  # noqa: PTH100
    sys.path[:0] = [folder for folder in dict.fromkeys(folders) if folder not in known]


def _load_agent(job_file: JobFile, problems: ProblemList) -> Agent | None:
    """Return the agent, of Python or of a document, with the resources that documents share."""
    reference, place, count = job_file.composition.agent, job_file.place("agent"), len(problems.found)
    named = AGENT_FILE.fullmatch(reference)
    documents = [] if job_file.document is None else [job_file.document]
    if named is not None:
        other = _read_agent_file(named["path"], job_file, place, problems)
        documents += [] if other is None else [other]
    if not documents:
        return _load_python_agent(reference, place, problems) if named is None else None
    from agentflow.plan.yaml_agents import build_agents

    built = build_agents(documents, problems)
    if len(problems.found) > count:
        return None
    if ":" in reference and named is None:
        agent = _load_python_agent(reference, place, problems)
    else:
        agent = built.agent(reference if named is None else named["name"], place, problems)
    if agent is not None:
        own = {(kind, name) for name, kind, _ in agent.resources}
        for name, kind, instance in built.resources:
            if (kind, name) not in own:
                agent.add_resource(name, kind, instance)
    return agent


def _read_agent_file(path: str, job_file: JobFile, place: Place, problems: ProblemList) -> AgentDocument | None:
    """Return the document of another file, which is looked for as modules are; None where it is the job file itself."""
    from agentflow.cli.agent_file import job_keys
    from agentflow.cli.keys import key_table
    from agentflow.plan.agent_documents import read_document_file

    paths = [Path(path), Path(job_file.path).parent / path]
    found = next((one for one in paths if one.is_file()), None)
    if found is None:
        note = "looked in the current directory, and beside the job file"
        problems.add(f"agent: there is no file '{path}'", place, note=note)
        return None
    if found.samefile(job_file.path):
        return None
    return read_document_file(str(found), problems, job_keys(key_table()))


def _load_python_agent(reference: str, place: Place, problems: ProblemList) -> Agent | None:
    from agentflow.api.agent import Agent

    role = f"agent '{reference}'"
    module = import_module(reference, role, place, problems)
    if module is None:
        return None
    agents = [
        name
        for name, value in vars(module).items()
        if (isinstance(value, type) and issubclass(value, Agent) and value is not Agent) or isinstance(value, Agent)
    ]
    count = len(problems.found)
    found = attribute_of(module, reference, role, agents, place, problems)
    if len(problems.found) > count:
        return None
    if isinstance(found, Agent):
        return found
    if not isinstance(found, type) or not issubclass(found, Agent):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        other = f"the module has: {', '.join(agents)}" if agents else "an Agent class or instance is wanted"
        problems.add(f"{role} is {kind}, not an Agent", place, note=other)
        return None
    try:
        return found()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (the edge to the user's code: a constructor may raise anything)
        problems.add(
            f"{role}: {found.__name__}() raised {error_text(error)}",
            place,
            note="an agent class is made without arguments; name an instance instead",
            detail=user_traceback(error),
        )
        return None


def _load_codec(section: object, key: str, job_file: JobFile, problems: ProblemList) -> Codec:
    """Return the codec that a source or sink names; JSON where it names none."""
    reference = getattr(section, "value", JSON.name)
    if reference in CODECS:
        return CODECS[reference]
    place, role = job_file.place(key), f"{key} '{reference}'"
    if ":" not in reference:
        near = nearest(reference, CODECS)
        note = f"did you mean '{near}'?" if near else f"one of {', '.join(CODECS)}, or module:name"
        problems.add(f"{role} is no codec", place, note=note)
        return JSON
    module = import_module(reference, role, place, problems)
    found = None if module is None else attribute_of(module, reference, role, [], place, problems)
    if found is None:
        return JSON
    try:
        codec = found() if isinstance(found, type) else found
    except (Exception, SystemExit) as error:  # noqa: BLE001 (the edge to the user's code)
        problems.add(f"{role} raised {error_text(error)}", place, detail=user_traceback(error))
        return JSON
    missing = [name for name in ("decode", "encode") if not callable(getattr(codec, name, None))]
    if missing:
        problems.add(
            f"{role} is no codec: it has no {' and no '.join(missing)}",
            place,
            note="a codec has name, decode(value, type) and encode(value): agentflow.Codec",
        )
        return JSON
    if not isinstance(getattr(codec, "name", None), str):
        codec.name = reference
    return codec  # type: ignore[no-any-return]


def _load_key_function(reference: str, place: Place, problems: ProblemList) -> Callable[[Any], Any] | None:
    role = f"key-by '{reference}'"
    if not is_reference(reference):
        problems.add(
            f"{role} is neither a field nor module:function", place, note="such as product_id, or shop.keys:of"
        )
        return None
    return find_function(reference, role, "a function of the value is wanted", place, problems)


def _load_listener(reference: str, place: Place, problems: ProblemList) -> Any:  # noqa: ANN401 (a function, or None and a problem)
    from agentflow.observability.event_log_targets import check_listener

    role = f"event-listeners '{reference}'"
    if not is_reference(reference):
        problems.add(f"{role} is not module:function", place, note="such as shop.listeners:audit")
        return None
    listener = find_function(reference, role, "a function of a record is wanted", place, problems)
    if listener is not None:
        try:
            check_listener(listener)
        except TypeError as error:
            problems.add(f"event-listeners: {error}", place)
    return listener
