"""The source tree as the meta tests see it: files, modules, syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "agentflow"
CODE_DIRS = ("agentflow", "benchmarks", "examples", "scripts", "tests", ".ci")

Functions = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """One parsed file of the package."""

    name: str  # dotted
    path: Path
    tree: ast.Module
    is_package: bool

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT) if self.path.is_absolute() else self.path}:{getattr(node, 'lineno', 1)}"


def parsed(name: str, source: str, *, is_package: bool = False) -> Module:
    """A module that exists only in a test: to show that a rule finds what it forbids."""
    return Module(name, Path(f"{name.replace('.', '/')}.py"), ast.parse(source), is_package)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package, by name."""
    found = []
    for path in python_files(PACKAGE):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8")), is_package))
    return tuple(found)


@cache
def module_names() -> frozenset[str]:
    return frozenset(module.name for module in modules())


def docstring_of(node: ast.AST) -> ast.Constant | None:
    """The docstring's constant of a module, class or function."""
    body = getattr(node, "body", None)
    if not isinstance(node, ast.Module | ast.ClassDef | Functions) or not body:
        return None
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first.value
    return None


def functions(tree: ast.AST) -> Iterator[Functions]:
    return (node for node in ast.walk(tree) if isinstance(node, Functions))
