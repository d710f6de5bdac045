"""The public names: sorted, all there, and cheap to import."""

from __future__ import annotations

import json
import subprocess
import sys

import agentflow
from tests.meta.source_tree import ROOT

# Loaded by the feature that needs them, never by `import agentflow`.
HEAVY = {
    "aiokafka", "anthropic", "cel", "google", "httpx", "matplotlib", "mcp", "numpy", "obstore", "openai",
    "opentelemetry", "prompt_toolkit", "pyarrow", "pydantic", "pydantic_core", "rich", "rocksdict", "structlog", "typer", "uvloop", "watchfiles",
    "yaml",
}  # fmt: skip
OWN_HEAVY = ("agentflow.testing", "agentflow.cli", "agentflow.state.rocks", "agentflow.integrations")


def modules_after(statement: str) -> set[str]:
    """Names of all modules loaded by ``statement`` in a process of its own."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout))


def order(name: str) -> tuple[int, str]:
    """The order that ruff keeps: CONSTANTS, Classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_public_names_are_sorted_and_unique():
    assert list(agentflow.__all__) == sorted(set(agentflow.__all__), key=order)


def test_every_public_name_can_be_imported():
    missing = [name for name in agentflow.__all__ if getattr(agentflow, name, None) is None]
    assert missing == []


def test_an_agent_author_finds_the_words_of_the_contract():
    words = {
        "Agent", "AgentsExecutionEnvironment", "Event", "EventType", "InputEvent", "OutputEvent", "RunnerContext", "action",
    }  # fmt: skip
    assert words - set(agentflow.__all__) == set()


def test_import_loads_no_vendor_package():
    loaded = modules_after("import agentflow") - modules_after("pass")
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()


def test_import_loads_neither_tests_nor_shell_nor_stores():
    loaded = modules_after("import agentflow")
    assert [name for name in sorted(loaded) if name.startswith(OWN_HEAVY)] == []


def test_loaded_modules_are_seen():
    assert "yaml" in modules_after("import yaml")
