"""The tables of the guide for agents: classes, arguments and keys are those of the program."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from agentflow.actions import policies
from agentflow.api.chat_models import BaseChatModelSetup
from agentflow.api.options import Configuration
from agentflow.api.resources import ResourceType
from agentflow.runtime.resource_classes import class_of
from tests.meta.source_tree import ROOT

GUIDE = (ROOT / "docs/agents.md").read_text()


def rows(header: str) -> dict[str, list[str]]:
    """Return the cells of a table by the name in its first one."""
    table = re.search(rf"^\| {header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", GUIDE, re.MULTILINE)
    assert table is not None
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table[1].splitlines()]
    return {first.strip("`"): rest for first, *rest in cells}


def names(text: str) -> list[str]:
    return re.findall(r"`([\w.-]+)`", text)


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


PROVIDERS = rows("class alias")
COMMON = fields(BaseChatModelSetup)


def arguments(alias: str, column: int) -> set[str]:
    """Return what a row says, with what it says by the name of another row."""
    said = names(PROVIDERS[alias][column])
    return set().union(*(arguments(name, column) if name in PROVIDERS else {name} for name in said))


def test_all_classes_of_chat_models_are_in_the_table() -> None:
    registered = re.search(
        r"entry-points.\"agentflow.chat_model_connection\"]\n((?:\w+ = .*\n)+)", read("pyproject.toml")
    )
    assert registered is not None
    assert set(PROVIDERS) == set(re.findall(r"^(\w+) =", registered[1], re.MULTILINE))


@pytest.mark.parametrize("alias", PROVIDERS)
def test_arguments_of_the_table_are_those_of_the_classes(alias: str) -> None:
    connection = class_of(alias, ResourceType.CHAT_MODEL_CONNECTION, "the guide")
    setup = class_of(alias, ResourceType.CHAT_MODEL, "the guide")
    assert arguments(alias, 2) <= fields(connection)
    assert fields(connection) - arguments(alias, 2) <= {"api_base_url", "base_url", "default_headers"}
    assert arguments(alias, 3) == fields(setup) - COMMON


def test_extras_of_the_table_are_those_of_the_package() -> None:
    extras = {name for row in PROVIDERS.values() for name in names(row[0])}
    assert extras <= set(re.findall(r"^([\w-]+) = \[", read("pyproject.toml"), re.MULTILINE))


def test_common_arguments_are_those_of_all_chat_models() -> None:
    said = re.search(r"Common to all chat models: (.*?)\.", GUIDE, re.DOTALL)
    assert said is not None
    assert set(names(said[1])) == COMMON


def test_keys_of_the_table_are_those_that_are_read() -> None:
    assert policies.__doc__ is not None
    read_keys = set(re.findall(r"``([\w.-]+?)(?:\.MODEL[^`]*)?``", policies.__doc__)) - {"config"}
    assert {key.partition(".MODEL")[0] for key in rows("key")} == read_keys
    assert policies.unknown_keys(Configuration(dict.fromkeys(rows("key"), 1))) == []


def test_keys_of_the_table_are_in_the_reference_of_job_files() -> None:
    shown = set(re.findall(r"^  # ([a-z][a-z.-]+?)(?:\.gpt-[\w.-]+)?: ", read("configs/reference.yaml"), re.MULTILINE))
    assert {key.partition(".MODEL")[0] for key in rows("key")} <= shown


def test_defaults_of_the_table_are_those_that_count() -> None:
    said = {key: row[0].strip("`") for key, row in rows("key").items() if row[0]}
    config = Configuration({key: int(value) if value.isdigit() else value for key, value in said.items()})
    setup = BaseChatModelSetup(model="m")
    assert policies.chat_policy(setup, config) == policies.chat_policy(BaseChatModelSetup(model="m"), Configuration())
    assert policies.tool_defaults(config) == policies.tool_defaults(Configuration())


def read(name: str) -> str:
    return Path(ROOT, name).read_text()
