"""An `assert` looks and changes nothing: `python -O` leaves it out."""

from __future__ import annotations

import ast

import pytest

from tests.meta.source_tree import Module, modules, parsed

CHANGING = frozenset({
    "add", "append", "apply", "clear", "close", "commit", "discard", "extend", "insert", "pop", "popleft", "put", "remove", "send",
    "setdefault", "start", "stop", "update", "write",
})  # fmt: skip


def changing_asserts(module: Module) -> list[str]:
    return [
        f"{module.at(node)}: {call.func.attr}()"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert)
        for call in ast.walk(node.test)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in CHANGING
    ]


def test_no_assert_does_what_has_to_be_done():
    # Conformance suites are tests: their asserts are what they are for.
    engine = [module for module in modules() if not module.name.startswith("agentflow.testing.conformance")]
    assert [line for module in engine for line in changing_asserts(module)] == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("assert batch.append(1) is not None", 1),
        ("done = batch.append(1)\nassert done is not None", 0),
        ("assert a.get(1)", 0),
    ],
)
def test_rule_finds_an_assert_that_changes_something(source, count):
    assert len(changing_asserts(parsed("agentflow.core.x", source))) == count
