"""YAML agents: documents in, agents and the resources that they share out. What a document names is imported; nothing is built or opened."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec

from agentflow.api.agent import Agent
from agentflow.api.decorators import ActionDeclaration
from agentflow.api.failure import Retry
from agentflow.api.prompts import Prompt
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.plan.agent_documents import AgentDocument, Entry, NameOf, read_document_file
from agentflow.plan.agent_specs import EVENT_ALIASES, SECTIONS
from agentflow.plan.compilation import Declared, check_names, compile_action
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.problems import ProblemList as PlanProblems
from agentflow.plan.problems import nearest
from agentflow.plan.triggers import Triggers
from agentflow.plan.yaml_resources import Lists, ResourceBuilder, Scope, function_of

_REACT_KEYS = ("chat_model", "prompt", "output_schema", "max_turns")
_OPTIONS = frozenset(inspect.signature(Agent.add_action).parameters) - {"config"}


class YamlDocument(msgspec.Struct, frozen=True):
    """What documents declare.

    Attributes:
        agents: By name.
        resources: For all of them, as (name, type, descriptor or instance).
    """

    agents: dict[str, Agent]
    resources: list[Declared]

    def agent(self, name: str | None, place: Place, problems: ProblemList) -> Agent | None:
        """Return an agent by name; without a name, the only one. None, and a problem, when there is none."""
        if name is None and len(self.agents) == 1:
            return next(iter(self.agents.values()))
        if name in self.agents:
            return self.agents[name]
        near = nearest(name or "", self.agents)
        what = f"there is no agent '{name}'" if name else f"there are {len(self.agents) or 'no'} agents"
        note = f"did you mean '{near}'?" if near else f"name one: {', '.join(self.agents)}" if self.agents else ""
        problems.add(what, place, note=note)
        return None


def load_documents(
    *paths: str, other_keys: Collection[str] = (), known: Collection[tuple[ResourceType, str]] = ()
) -> YamlDocument:
    """Read documents of agents, and import what they name.

    Args:
        paths: The files; what one shares, the others see.
        other_keys: Keys at the top of a file that are not for agents, and are passed over.
        known: Resources that are there without the documents, by type and name.

    Raises:
        JobFileError: With all problems, each with its line.
    """
    problems = ProblemList()
    documents = [read_document_file(path, problems, other_keys) for path in paths]
    problems.raise_all()
    document = build_agents([one for one in documents if one is not None], problems, known)
    problems.raise_all()
    return document


def build_agents(
    documents: Sequence[AgentDocument], problems: ProblemList, known: Collection[tuple[ResourceType, str]] = ()
) -> YamlDocument:
    """Make agents and shared resources of documents; see `load_documents`. Where there are problems, it is not whole."""
    return _Builder(documents, problems, known).build()


class _Placed(PlanProblems):
    """Tells the problems that the plan finds where the document says it."""

    def __init__(self, label: str, place: Place, problems: ProblemList) -> None:
        super().__init__(label)
        self._label = label
        self._place = place
        self._problems = problems

    def add(self, what: str, *, place: str = "", expected: str = "", fix: str = "") -> None:
        del place  # it has a line
        self.texts.append(what)
        wanted = f"expected: {expected}" if expected else ""
        self._problems.add(f"{self._label}: {what}", self._place, note=wanted, help=fix)


class _Builder:
    """Builds the entries of documents, which see each other's shared ones."""

    def __init__(
        self,
        documents: Sequence[AgentDocument],
        problems: ProblemList,
        known: Collection[tuple[ResourceType, str]],
    ) -> None:
        self._documents = documents
        self._problems = problems
        self._scope = Scope(known, problems)
        self._builder = ResourceBuilder(self._scope, problems)
        self._actions: dict[int, tuple[ActionDeclaration, Callable[..., Any]] | None] = {}  # by id of the entry

    def build(self) -> YamlDocument:
        """Return agents and shared resources."""
        for document in self._documents:
            for section, entries in document.shared.items():
                for entry in entries:
                    self._share(section, entry)
        resources: list[Declared] = []
        agents: dict[str, Agent] = {}
        places: dict[str, Place] = {}
        for document in self._documents:
            for entry in document.shared.get("actions", ()):
                self._action(entry)
            for section, entries in document.shared.items():
                resources += self._resources(section, entries, document, own={})
            for entry in document.agents:
                if entry.name in places:
                    self._report_twice(entry, places[entry.name])
                places.setdefault(entry.name, entry.at("name"))
                agent = self._agent(entry, document)
                if agent is not None:
                    agents.setdefault(entry.name, agent)
        return YamlDocument(agents, resources)

    def _share(self, section: str, entry: Entry) -> None:
        earlier = self._scope.shared.setdefault((section, entry.name), entry)
        if earlier is not entry:
            self._report_twice(entry, earlier.at("name", "function"))

    def _report_twice(self, entry: Entry, first: Place) -> None:
        self._problems.add(f"{entry.label} is there twice, first in {first.label}", entry.at("name", "function"))

    def _agent(self, entry: Entry, document: AgentDocument) -> Agent | None:
        agent = self._bare_agent(entry, document)
        for section, entries in entry.entries.items():
            for one in entries:
                if isinstance(one, NameOf):
                    self._refer(section, one, agent)
                elif section == "actions":
                    self._add_action(agent, one)
            if section in SECTIONS:
                own = [one for one in entries if isinstance(one, Entry)]
                for name, kind, instance in self._resources(section, own, document, own=entry.entries):
                    agent.add_resource(name, kind, instance)
        agent.__doc__ = entry.spec.description or None
        return agent

    def _bare_agent(self, entry: Entry, document: AgentDocument) -> Agent:
        """Return the agent without what is in its lists."""
        spec = entry.spec
        if spec.type is None:
            for key in _REACT_KEYS:
                if key in entry.places:
                    what = f"{entry.label} has '{key}', which is for agents of type react"
                    self._problems.add(what, entry.keys[key], note="add  type: react,  or remove it")
            if not entry.entries.get("actions"):
                what = f"{entry.label} has no actions"
                self._problems.add(what, entry.at("actions"), note="add  actions:,  or make it  type: react")
            return Agent(spec.name)
        chat_model = self._chat_model(entry, document)
        prompt = self._prompt_of(entry, document)
        if chat_model is None:
            return Agent(spec.name)  # its problem is told
        from agentflow.actions.agents.react_agent import ReActAgent  # agents without it do not pay for it

        options: dict[str, Any] = {"chat_model": chat_model, "prompt": prompt, "output_schema": spec.output_schema}
        if "tools" in entry.places:
            options["tools"] = [one.name for one in entry.entries.get("tools", ())]
        if spec.max_turns is not None:
            options["max_turns"] = spec.max_turns
        agent: Agent = ReActAgent(name=spec.name, **options)
        return agent

    def _chat_model(self, entry: Entry, document: AgentDocument) -> str | ResourceDescriptor | None:
        inline = entry.entries.get("chat_model")
        if inline:
            setup = inline[0]
            assert isinstance(setup, Entry), "what stands in an agent is no name"
            descriptor = self._builder.instance("chat_model_setups", setup, document, entry.entries)
            return descriptor if isinstance(descriptor, ResourceDescriptor) else None
        name: str | None = entry.spec.chat_model
        if name is None:
            what = f"{entry.label} has no 'chat_model'"
            self._problems.add(what, entry.at("name"), note="the name of a setup, or a setup")
            return None
        is_there = self._scope.check(entry.label, "chat_model_setups", name, entry.at("chat_model"), own=entry.entries)
        return name if is_there else None

    def _prompt_of(self, entry: Entry, document: AgentDocument) -> Prompt | str | None:
        inline = entry.entries.get("prompt")
        if inline:
            assert isinstance(inline[0], Entry), "what stands in an agent is no name"
            return self._builder.prompt(inline[0], document)
        name: str | None = entry.spec.prompt
        if name is not None:
            self._scope.check(entry.label, "prompts", name, entry.at("prompt"), own=entry.entries)
        return name

    def _refer(self, section: str, name: NameOf, agent: Agent) -> None:
        """Take in what is shared: actions are added, and resources are there for every agent."""
        if section != "actions":
            self._scope.check(f"agent '{agent.name}'", section, name.name, name.place, own={})
            return
        entry = self._scope.shared.get((section, name.name))
        if entry is None:
            self._scope.check(f"agent '{agent.name}'", section, name.name, name.place, own={})
        else:
            self._add_action(agent, entry)

    def _resources(
        self,
        section: str,
        entries: Sequence[Entry],
        document: AgentDocument,
        own: Lists,
    ) -> Iterator[Declared]:
        kind = SECTIONS[section].type
        for entry in entries if kind is not None else ():
            instance = self._builder.instance(section, entry, document, own)
            if instance is not None and kind is not None:
                yield entry.name, kind, instance

    def _add_action(self, agent: Agent, entry: Entry) -> None:
        made = self._action(entry)
        if made is not None:
            declaration, function = made
            agent.add_action(
                entry.name,
                declaration.trigger_conditions,
                function,
                blocking=declaration.blocking,
                parallel=declaration.parallel,
                retry=declaration.retry,
                on_error=declaration.on_error,
                timeout=declaration.timeout,
                **declaration.config,
            )

    def _action(self, entry: Entry) -> tuple[ActionDeclaration, Callable[..., Any]] | None:
        """Return what an action is made of; a shared one is made, and its problems are told, once."""
        if id(entry) not in self._actions:
            self._actions[id(entry)] = self._made_action(entry)
        return self._actions[id(entry)]

    def _made_action(self, entry: Entry) -> tuple[ActionDeclaration, Callable[..., Any]] | None:
        """Check an action as the plan does, with places."""
        spec, count = entry.spec, len(self._problems.found)
        texts = [spec.trigger_conditions] if isinstance(spec.trigger_conditions, str) else spec.trigger_conditions
        triggers = tuple(EVENT_ALIASES.get(text, text) for text in texts)
        for index, trigger in enumerate(triggers):
            place = entry.at(f"trigger_conditions[{index}]", "trigger_conditions")
            Triggers().read((trigger,), "", _Placed(entry.label, place, self._problems))
        check_names([entry.name], _Placed(entry.label, entry.at("name", "function"), self._problems))
        for key in spec.config:
            if key in _OPTIONS:
                what = f"{entry.label}: '{key}' is an option of the action, not one of its own"
                self._problems.add(
                    what, entry.at("config"), note=f"write '{key}' beside 'config', or give it another name"
                )
        function = function_of(spec.function, entry, "function", self._problems)
        if function is None or len(self._problems.found) > count:
            return None
        declaration = ActionDeclaration(
            trigger_conditions=triggers,
            blocking=spec.blocking,
            parallel=spec.parallel,
            retry=None if spec.retry is None else Retry(**msgspec.structs.asdict(spec.retry)),
            on_error=spec.on_error,
            timeout=spec.timeout,
            config=spec.config,
        )
        placed = _Placed(entry.label, entry.at("function"), self._problems)
        action, _ = compile_action(entry.name, 0, declaration, function, placed)
        return None if action is None else (declaration, function)
