"""Names say what a thing is; words that fit everything are not used."""

from __future__ import annotations

import ast
import re

import pytest

from tests.meta.source_tree import Module, modules, parsed

IN_CLASSES = re.compile(r"Manager|Helper|Utils?(?![a-z])|Impl(?![a-z])|^_?Base(?=[A-Z])|Wrapper")
OF_FLINK_AGENTS = {"BaseChatModelConnection", "BaseChatModelSetup"}  # public names that its users know
IN_FUNCTIONS = re.compile(r"^_*(do_(?!GET$)|maybe_)|_(helper|utils?|impl|wrapper)$|manager")
IN_FILES = re.compile(r"^_?(utils?|helpers?|common|misc|manager|base|wrappers?)$")


def bad_names(module: Module) -> list[str]:
    found = [f"{module.at(module.tree)}: file {module.name}"] if IN_FILES.search(module.name.rpartition(".")[2]) else []
    for node in ast.walk(module.tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (is_function and IN_FUNCTIONS.search(node.name)) or (
            isinstance(node, ast.ClassDef) and IN_CLASSES.search(node.name) and node.name not in OF_FLINK_AGENTS
        ):
            found.append(f"{module.at(node)}: {node.name}")
    return found


def test_no_name_is_a_word_that_fits_everything():
    assert [line for module in modules() for line in bad_names(module)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("agentflow.core.utils", ""),
        ("agentflow.core.x", "class StateManager: ..."),
        ("agentflow.core.x", "class BaseSource: ..."),
        ("agentflow.core.x", "class StoreImpl: ..."),
        ("agentflow.core.x", "def _do_commit(): ..."),
        ("agentflow.core.x", "async def maybe_flush(): ..."),
    ],
)
def test_name_rule_finds_such_a_word(name, source):
    assert len(bad_names(parsed(name, source))) == 1


@pytest.mark.parametrize(
    "source", ["class Baseline: ...", "class Implicit: ...", "class Utility: ...", "def domain(): ..."]
)
def test_name_rule_knows_the_difference(source):
    assert bad_names(parsed("agentflow.core.x", source)) == []
