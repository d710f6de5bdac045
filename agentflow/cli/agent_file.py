"""A file that holds agents: its job keys beside them, and what stands in for those that are not there.

`agentflow run agent.yaml` needs no more than agents: it reads JSON lines from standard input, and writes them to standard output.
"""

from __future__ import annotations

from typing import Any, Final

from agentflow.cli.keys import PROFILES, KeyTable
from agentflow.cli.layers import Entry, Layer
from agentflow.cli.references import has_reference
from agentflow.cli.values import AGENT_FILE, AGENT_NAME, describe_command
from agentflow.plan.agent_documents import SCHEMA_COMMAND, AgentDocument, read_document
from agentflow.plan.agent_specs import DOCUMENT_KEYS
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.problems import nearest
from agentflow.plan.yaml_source import Mapping, Scalar

KEY_BY: Final = f"{__name__}:key_of"


def key_of(value: Any) -> Any:  # noqa: ANN401 (a decoded record, its key)
    """Return the key of a record where the file has no `key-by`: the field ``key``, else one for all."""
    key = value.get("key") if isinstance(value, dict) else None
    return "" if key is None else key


def job_keys(table: KeyTable) -> list[str]:
    """Return the keys that a file may have beside its agents."""
    return [*table.sections[()].children, PROFILES]


def split(root: Mapping, path: str, problems: ProblemList) -> tuple[Mapping, AgentDocument | None]:
    """Return what a file says of the job, and its agents and what they share; None: it has neither."""
    of_agents = [entry for entry in root.entries if entry[0] in DOCUMENT_KEYS]
    if not of_agents:
        return root, None
    of_job = [entry for entry in root.entries if entry[0] not in DOCUMENT_KEYS]
    return Mapping(of_job, root.place), read_document(Mapping(of_agents, root.place), path, problems)


def completed(layer: Layer, document: AgentDocument | None, path: str, problems: ProblemList) -> Layer:
    """Return what is set, and for a file with agents what stands in for what is not."""
    entry = layer.get(("agent",))
    if entry is not None:
        _check_agent(entry, document, problems)
    if document is None or not document.has_agents:
        return layer
    given = {key_path[0] for key_path, entry in layer.items() if not entry.is_reset}
    place = Place(path)
    made: Layer = {}

    def put(key: str, text: str) -> None:
        made[(key,)] = Entry(place, Scalar(text, text, place), is_literal=True)

    if "agent" not in given:
        names = [agent.name for agent in document.agents]
        if len(names) > 1:
            note = f"such as  agent: {names[0]}   (or --set agent={names[0]})"
            problems.add(f"which agent? the file has {', '.join(names)}", place, note=note)
        if not names and not problems.found:
            problems.add("'agents' has no agent", place, help=SCHEMA_COMMAND)
        put("agent", names[0] if names else "agents")
    if "source" not in given:
        made["source", "stdin"] = Entry(place, None)
    if "sink" not in given:
        made["sink", "stdout"] = Entry(place, None)
    if "key-by" not in given:
        put("key-by", KEY_BY)
    if "guarantee" not in given:
        both = {**layer, **made}
        if ("source", "stdin") in both:
            put("guarantee", "none")  # it cannot be read twice
        elif ("sink", "stdout") in both:
            put("guarantee", "at-least-once")
    return {**layer, **made}


def _check_agent(entry: Entry, document: AgentDocument | None, problems: ProblemList) -> None:
    """Report a name that no agent of the file has."""
    value = entry.value
    if not isinstance(value, Scalar) or has_reference(value) or not AGENT_NAME.fullmatch(value.text):
        return
    if AGENT_FILE.fullmatch(value.text):
        return
    names = [agent.name for agent in document.agents] if document is not None else []
    if value.text in names:
        return
    if not names:
        what, note = f"agent is not module:name: '{value.text}'", "such as shop.agents:ReviewAgent"
    else:
        near = nearest(value.text, names)
        what = f"there is no agent '{value.text}'"
        note = f"did you mean '{near}'?" if near else f"the file has {', '.join(names)}"
    problems.add(what, value.place, note=note, help=describe_command(("agent",)))
