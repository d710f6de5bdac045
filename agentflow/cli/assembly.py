"""From a flat table of keys to a typed `JobFile`."""

from __future__ import annotations

from collections.abc import Mapping as Variables
from typing import Any

import msgspec

from agentflow.cli.job_file import Composition, JobFile, LogSettings
from agentflow.cli.keys import FREE, Key, KeyTable, Path, Section
from agentflow.cli.layers import Layer
from agentflow.cli.references import resolved
from agentflow.cli.values import NO_VALUE, describe_command, free_value, key_value
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.runtime.settings import JobSettings

_EXAMPLES = {
    "agent": "agent: shop.agents:ReviewAgent",
    "key-by": "key-by: product_id",
    "source": "source: {jsonl: {path: in.jsonl}}",
    "sink": "sink: {jsonl: {path: out/}}",
}


class Assembly:
    """Builds one job file from its layers, which are one by now.

    Args:
        path: The job file's name for messages.
        layer: The keys that are set.
        table: The known keys.
        variables: For ``${env:…}``.
        problems: Takes what is wrong.
    """

    def __init__(
        self, path: str, layer: Layer, table: KeyTable, variables: Variables[str, str], problems: ProblemList
    ) -> None:
        self._path = path
        self._layer = {key_path: entry for key_path, entry in layer.items() if not entry.is_reset}
        self._table = table
        self._variables = variables
        self._problems = problems
        self._values: dict[Path, Any] = {}
        self._config: dict[str, Any] = {}
        self._options: dict[Path, dict[str, Any]] = {}  # of free sections beside `config`

    def build(self) -> JobFile:
        """Return the job file.

        Raises:
            JobFileError: With all problems, also those that were found before.
        """
        for key_path in self._layer:
            self._read(key_path)
        choices = [section for section in self._table.sections.values() if section.is_choice]
        kinds = {section.path: self._kind(section) for section in choices}
        for key_path, key in self._table.keys.items():
            is_of_other_kind = key_path[:1] in kinds and kinds[key_path[:1]] != key_path[1]
            if key.is_required and key_path not in self._values and not is_of_other_kind:
                self._report_missing(key)
        self._problems.raise_all()
        return self._typed(kinds)

    def _read(self, key_path: Path) -> None:
        entry = self._layer[key_path]
        if entry.value is None:
            return
        value = entry.value
        if not entry.is_literal:
            count = len(self._problems.found)
            value = resolved(value, self._variables, self._problems)
            if len(self._problems.found) > count:
                self._values[key_path] = NO_VALUE  # one problem per value is enough
                return
        free = self._table.free_section(key_path)
        if free == (FREE,):
            self._config[".".join(key_path[1:])] = free_value(value)
        elif free is not None:
            _put(self._options.setdefault(free, {}), key_path[len(free) :], free_value(value))
        else:
            key = self._table.find(key_path)
            assert key is not None, f"{key_path}: layers hold known keys only"
            self._values[key_path] = key_value(key, value, self._problems)

    def _kind(self, section: Section) -> str | None:
        """Return the kind that is chosen; None when there is none (a problem where one is required)."""
        (name,) = section.path
        given = {path[1]: entry for path, entry in self._layer.items() if path[0] == name and len(path) > 1}
        if len(given) > 1:
            (first, earlier), (second, later), *_ = given.items()
            self._problems.add(
                f"'{name}' has both '{first}' and '{second}'",
                later.key,
                note="choose one",
                related=earlier.key if earlier.key.line != later.key.line else None,
            )
        if given:
            return next(iter(given))
        entry = self._layer.get(section.path)
        if entry is not None and not self._is_told(entry.key):
            one_of = f"one of: {', '.join(section.children)}"
            self._problems.add(f"'{name}' is empty", entry.key, note=one_of, help=describe_command(section.path))
        elif entry is None and section.is_required:
            self._report_missing_name(name)
        return None

    def _is_told(self, place: Place) -> bool:
        """Whether the line has a problem already, such as an unknown kind of source."""
        return any(
            problem.place.source == place.source and problem.place.line == place.line
            for problem in self._problems.found
        )

    def _report_missing(self, key: Key) -> None:
        if len(key.path) == 1:
            self._report_missing_name(key.name)
            return
        below = next((entry for path, entry in self._layer.items() if path[:-1] == key.path[:-1]), None)
        section = self._layer.get(key.path[:-1]) or below
        place = section.key if section is not None else Place(self._path)
        if not self._is_told(place):
            self._problems.add(f"'{key.name}' is missing", place, note=key.description.rstrip("."))

    def _report_missing_name(self, name: str) -> None:
        """Report a missing key of the file, unless the misspelled one was told already."""
        if any(
            problem.note == f"did you mean '{name}'?" or problem.what.startswith(f"unknown key '{name}.")
            or problem.what.startswith(f"'{name}' is a section")
            for problem in self._problems.found
        ):  # fmt: skip
            return
        note = f"such as  {_EXAMPLES[name]}"
        self._problems.add(f"'{name}' is missing", Place(self._path), note=note, help=describe_command(()))

    def _typed(self, kinds: dict[Path, str | None]) -> JobFile:
        composition: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        for section_path, kind in kinds.items():
            if kind is None:
                continue
            section = self._table.sections[*section_path, kind]
            assert section.struct is not None, f"{section.path}: a kind is made of a struct"
            arguments = {
                self._table.keys[path].fields[-1]: value
                for path, value in self._values.items()
                if path[:2] == section.path
            }
            for path, options in self._options.items():
                if path[:2] == section.path:
                    arguments[self._table.sections[path].fields[-1]] = options
            composition[self._table.sections[section_path].fields[0]] = section.struct(**arguments)
        own = {field.name for field in msgspec.structs.fields(Composition)}
        for path, value in self._values.items():
            if path[:1] not in kinds and self._table.open_section(path) is None:
                fields = self._table.keys[path].fields
                _put(composition if fields[0] in own else settings, fields, value)
        for section in self._table.open_sections:
            if named := self._named(section):
                _put(settings, section.fields, named)
        composition["log"] = LogSettings(**composition.get("log", {}))
        # Not `msgspec.convert`: the values are checked, and the structs are not decoded from anything.
        defaults = JobSettings()
        places = {
            ".".join(path): entry.value.place if entry.value is not None else entry.key
            for path, entry in self._layer.items()
        }
        return JobFile(self._path, _filled(defaults, settings), Composition(**composition), self._config, places)

    def _named(self, section: Section) -> dict[str, Any]:
        """Return the structs of an open section by name."""
        named: dict[str, dict[str, Any]] = {}
        for path, value in self._values.items():
            if self._table.open_section(path) is section and (key := section.leaf(path)) is not None:
                *_, name, field = key.fields
                named.setdefault(name, {})[field] = value
        assert section.struct is not None, f"{section.path}: a name stands for a struct"
        return {name: section.struct(**fields) for name, fields in named.items()}


def _filled(default: Any, values: Any) -> Any:  # noqa: ANN401 (any settings struct)
    """Return the struct of ``default`` with values in it; values of a section below are in a dict."""
    return msgspec.structs.replace(
        default,
        **{
            name: _filled(inner, value) if isinstance(inner := getattr(default, name), msgspec.Struct) else value
            for name, value in values.items()
        },
    )


def _put(target: dict[str, Any], fields: Path, value: Any) -> None:  # noqa: ANN401 (any value)
    for field in fields[:-1]:
        target = target.setdefault(field, {})
    target[fields[-1]] = value
