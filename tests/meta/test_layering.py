"""The import rule: errors < api < actions < plan < core < runtime < the four siblings < testing < environment < cli.

An import counts wherever it stands: at the top, in a function, under TYPE_CHECKING, or as a string for importlib.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.meta.source_tree import PACKAGE, Module, docstring_of, module_names, modules, parsed

SIBLINGS = ("state", "connectors", "observability", "integrations")
RANK = {
    "errors": 0,
    "api": 1,
    "actions": 2,
    "plan": 3,
    "core": 4,
    "runtime": 5,
    **dict.fromkeys(SIBLINGS, 6),
    "testing": 7,
    "environment": 8,
    "cli": 9,
    "__main__": 9,
}
ROOT_RANK = 9  # `from agentflow import …` pulls everything: only the composition root of the shell may

# What the data that cross a port are made of; a sibling sees these of core, the ports of runtime, and nothing else of both.
PORT_MODULES = (
    "agentflow.core.records",
    "agentflow.core.delta",
    "agentflow.core.inputs",
    "agentflow.core.effects",
    "agentflow.core.trace_context",
    "agentflow.runtime.logs",  # where lines go
    "agentflow.runtime.ports",
    "agentflow.runtime.settings",  # plain values; a connector of a server has many
    "agentflow.runtime.observation",  # what observers are shown
    "agentflow.runtime.redaction",  # what must not be seen anywhere
)
API_ONLY = ("integrations", "actions")

# Where a third-party package may be imported. A package that is not here is not a dependency.
VENDORS = {
    "aiohttp": (
        r"agentflow\.connectors\.http_source\b",
        r"agentflow\.integrations\.(google_genai|aiobotocore_bedrock)\b",  # its errors come through these SDKs as they are
        r"agentflow\.integrations\.(openai_connection|litellm)\b",  # and through OpenAI's; LiteLLM takes a session of it
        r"agentflow\.testing\.model_server\b",
    ),
    "aiokafka": (r"agentflow\.connectors\.kafka\b", r"agentflow\.state\.kafka_"),
    "anyio": (r"agentflow\.integrations\.mcp_\w+\b",),  # what the MCP SDK is written with
    "botocore": (r"agentflow\.integrations\.aiobotocore_bedrock\b",),  # the errors of aiobotocore
    "cel": (r"agentflow\.plan\b",),
    "docstring_parser": (r"agentflow\.api\.tool_schemas\b",),
    "jsonschema": (r"agentflow\.api\.output_schemas\b",),
    "google": (r"agentflow\.integrations\.google_genai\b",),
    "openai": (r"agentflow\.integrations\.\w*openai\w*\b",),
    "httpx": (r"agentflow\.integrations\.ollama\b",),  # what its SDK speaks HTTP with
    "httpx2": (r"agentflow\.integrations\.\w*(openai|anthropic|mcp)\w*\b",),  # what their SDKs do
    "msgspec": (r"agentflow\b",),
    "opentelemetry": (r"agentflow\.observability\b",),
    "prometheus_client": (r"agentflow\.observability\b",),  # what OpenTelemetry's exporter for it writes to
    "obstore": (r"agentflow\.connectors\b",),
    "pytest": (r"agentflow\.testing\.conformance\b",),
    "pyarrow": (r"agentflow\.(connectors|state)\b",),
    "rich": (r"agentflow\.cli\b",),
    "rocksdict": (r"agentflow\.state\b",),
    "starlette": (r"agentflow\.integrations\.asgi\b",),
    "structlog": (r"agentflow\.(observability|environment|cli)\b", r"agentflow\.runtime\.logs\b"),
    "textual": (r"agentflow\.cli\.top_screen\b", r"agentflow\.cli\.top\b"),
    "uvloop": (r"agentflow\.(runtime|environment|cli)\b", r"agentflow\.testing\.model_server\.__main__$"),
    "watchfiles": (r"agentflow\.connectors\.follow\b",),
    "yaml": (r"agentflow\.(plan|runtime|environment|cli)\b",),
}
PURE = ("errors", "api", "plan", "core")
NOT_IN_PURE = {"asyncio", "selectors", "socket", "ssl", "http", "urllib", "subprocess", "multiprocessing", "concurrent"}
NOT_IN_CORE = NOT_IN_PURE | {
    "time", "random", "secrets", "uuid", "os", "io", "pathlib", "shutil", "tempfile", "logging", "threading", "queue",
    "contextvars", "signal", "warnings", "weakref",
}  # fmt: skip
CALLS_NOT_IN_CORE = {"print", "open", "input", "hash", "exec", "eval", "breakpoint", "globals"}
CLOCK_METHODS = {"now", "utcnow", "today"}
NOWHERE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


class Import(NamedTuple):
    target: str  # dotted module
    node: ast.AST


def imports(module: Module) -> Iterator[Import]:
    """Every module that ``module`` names, also by string."""
    docstrings = {id(docstring_of(node)) for node in ast.walk(module.tree)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield Import(submodule if submodule in module_names() else base, node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            named = re.match(rf"{PACKAGE}\.(\w+)[\w.]*", node.value)
            if named and named[1] in RANK:
                yield Import(named[0].rstrip("."), node)


def absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    kept = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def layer_of(name: str) -> str | None:
    """The layer of a module of the package; None for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else None


def layer_violations(module: Module) -> list[str]:
    own = layer_of(module.name)
    if own is None:
        return []  # agentflow/__init__.py names the public surface of all layers
    if own not in RANK:
        return [f"{module.at(module.tree)}: '{own}' is no layer; architecture.md names the layers"]
    found = []
    for target, node in imports(module):
        if target.split(".")[0] != PACKAGE:
            continue
        other = layer_of(target)
        if other == own:
            continue
        if other is not None and other not in RANK:
            found.append(f"{module.at(node)}: {target}: '{other}' is no layer")
        elif (ROOT_RANK if other is None else RANK[other]) > RANK[own] or (other in SIBLINGS and own in SIBLINGS):
            found.append(f"{module.at(node)}: {own} imports {target}, which is not below it")
        elif own in API_ONLY and other not in {"api", "errors"}:
            found.append(f"{module.at(node)}: {own} imports {target}, but sees api and errors only")
        elif own in SIBLINGS and other not in {"api", "errors"} and not target.startswith(PORT_MODULES):
            found.append(
                f"{module.at(node)}: {own} imports {target}, but sees runtime.ports and its data, api, errors only"
            )
    return found


def vendor_violations(module: Module) -> list[str]:
    found = []
    for target, node in imports(module):
        top = target.split(".")[0]
        if top == PACKAGE or top in sys.stdlib_module_names:
            if top in NOWHERE:
                found.append(f"{module.at(node)}: {top} is no storage format of ours")
            continue
        own_file = rf"agentflow\.integrations\.(\w+\.)*\w*{re.escape(top)}\w*"  # one file per vendor, named for it
        places = VENDORS.get(top, (own_file,))
        if not any(re.match(place, module.name) for place in places):
            found.append(f"{module.at(node)}: {top} may be imported under {' or '.join(places)} only")
    return found


def purity_violations(module: Module) -> list[str]:
    layer = layer_of(module.name)
    if layer not in PURE:
        return []
    banned = NOT_IN_CORE if layer == "core" else NOT_IN_PURE
    found = [
        f"{module.at(node)}: {layer} imports {target}"
        for target, node in imports(module)
        if target.split(".")[0] in banned
    ]
    if layer == "core":
        found += [f"{module.at(node)}: {what}" for node in ast.walk(module.tree) if (what := banned_in_core(node))]
    return found


def banned_in_core(node: ast.AST) -> str | None:
    """Say what is wrong with one node of a core module; None: nothing."""
    if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
        return "core does not wait"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS_NOT_IN_CORE:
        return f"core calls {node.func.id}()"
    if (
        isinstance(node, ast.Attribute)
        and node.attr in CLOCK_METHODS
        and isinstance(node.value, ast.Name | ast.Attribute)
    ):
        owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
        if owner in {"datetime", "date"}:
            return f"core reads a clock: {owner}.{node.attr}"
    if isinstance(node, ast.For | ast.comprehension) and is_set(node.iter):
        return "core iterates over a set"
    return None


def is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"set", "frozenset"}


def test_every_import_points_down_the_layers():
    assert [line for module in modules() for line in layer_violations(module)] == []


def test_every_vendor_stays_in_its_place():
    assert [line for module in modules() for line in vendor_violations(module)] == []


def test_core_has_no_clock_no_io_no_randomness_and_no_asyncio():
    assert [line for module in modules() for line in purity_violations(module)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("agentflow.api.x", "from agentflow.runtime import ports"),
        ("agentflow.api.x", "def f():\n    import agentflow.core.delta"),
        ("agentflow.core.x", "from ..runtime.ports import Clock"),
        ("agentflow.core.x", "import importlib\nimportlib.import_module('agentflow.state.rocksdb')"),
        ("agentflow.core.x", "name = 'x'\nmodule = f'agentflow.connectors.{name}'"),
        ("agentflow.state.x", "from agentflow.connectors import files"),
        ("agentflow.state.x", "from agentflow.core.operator import Operator"),
        ("agentflow.actions.x", "from agentflow.runtime.ports import Clock"),
        ("agentflow.runtime.x", "from agentflow.testing import clock"),
        ("agentflow.runtime.x", "from agentflow import Agent"),
        ("agentflow.environment", "from agentflow.cli import main"),
        ("agentflow.shared.x", "import json"),
        (
            "agentflow.errors",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from agentflow.api import events",
        ),
    ],
)
def test_layer_rule_finds_an_import_that_points_up(name, source):
    assert len(layer_violations(parsed(name, source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("agentflow.state.x", "from agentflow.core.delta import Table\nfrom agentflow.runtime.ports import KeyedState"),
        ("agentflow.cli.x", "from agentflow import Agent\nfrom agentflow.testing import clock"),
        (
            "agentflow.core.x",
            '"""See agentflow.runtime.ports."""\nfrom agentflow.api import events\nfrom . import delta',
        ),
        ("agentflow.runtime.x", "LOGGER = 'agentflow.user'"),
    ],
)
def test_layer_rule_allows_an_import_that_points_down(name, source):
    assert layer_violations(parsed(name, source)) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("agentflow.runtime.x", "import rocksdict"),
        ("agentflow.core.x", "def f():\n    from cel import evaluate"),
        ("agentflow.connectors.files", "import aiokafka.producer"),
        ("agentflow.runtime.x", "import rich"),
        ("agentflow.integrations.openai", "import anthropic"),
        ("agentflow.state.x", "import pickle"),
    ],
)
def test_vendor_rule_finds_a_package_out_of_its_place(name, source):
    assert len(vendor_violations(parsed(name, source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "import time",
        "from random import random",
        "from uuid import uuid4",
        "import os.path",
        "import logging",
        "import threading",
        "print('x')",
        "open('x')",
        "hash('x')",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.utcnow()",
        "async def f(): ...",
        "for x in {1, 2}: ...",
        "[x for x in set('ab')]",
    ],
)
def test_purity_rule_finds_what_core_must_not_do(source):
    assert len(purity_violations(parsed("agentflow.core.x", source))) == 1


def test_purity_rule_leaves_the_shell_alone():
    assert (
        purity_violations(parsed("agentflow.runtime.x", "import asyncio, time\nasync def f(): print(time.time())"))
        == []
    )
