"""Every error is used, and the tree in the module's docstring is the real one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from agentflow import errors
from tests.meta.source_tree import Module, modules, parsed


def error_classes() -> dict[str, type[errors.AgentflowError]]:
    """The public error classes by name."""
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.AgentflowError) and not name.startswith("_")
    }


def drawn_tree(docstring: str) -> dict[str, str | None]:
    """Parse the drawing: class → parent; the depth is where its branch stands."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in docstring.splitlines():
        branch, root = r"[ │]*[├└]── (?=[A-Z]\w*\b)", r" +(?=[A-Z]\w*$)"  # the root stands alone on its line
        drawn = re.match(rf"(?P<lead>{branch}|{root})(?P<name>\w+)", line)
        if not drawn:
            continue
        depth = len(drawn["lead"])
        while above and above[-1][0] >= depth:
            above.pop()
        parents[drawn["name"]] = above[-1][1] if above else None
        above.append((depth, drawn["name"]))
    return parents


def real_tree() -> dict[str, str | None]:
    """Class → nearest public error class above it."""
    classes = error_classes()
    return {
        name: next((base.__name__ for base in cls.__mro__[1:] if base.__name__ in classes), None)
        for name, cls in classes.items()
    }


def used_names(module: Module) -> Iterator[str]:
    """Names that a module raises, builds, chooses, or reports as data (``ErrorReport("Name", …)``, ``Name.__name__``)."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            yield node.exc.id
        elif isinstance(node, (ast.Return, ast.Attribute)) and isinstance(node.value, ast.Name):
            if isinstance(node, ast.Return) or node.attr == "__name__":
                yield node.value.id
        elif isinstance(node, ast.IfExp):
            yield from (name.id for name in (node.body, node.orelse) if isinstance(name, ast.Name))
        elif isinstance(node, ast.Call):
            called = node.func
            name = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            yield name
            if name == "ErrorReport":
                values = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "type")]
                yield from (value.value for value in values if isinstance(value, ast.Constant))


def test_drawn_tree_is_the_real_tree():
    assert drawn_tree(errors.__doc__) == real_tree()


def test_every_error_is_raised_somewhere():
    used = {name for module in modules() if module.name != "agentflow.errors" for name in used_names(module)}
    groups = {
        parent for parent in real_tree().values() if parent
    }  # classes to catch by; only what is below them is raised
    assert sorted(set(error_classes()) - groups - used) == []


def test_every_error_says_what_the_engine_does_about_it():
    assert {name for name, cls in error_classes().items() if not isinstance(cls.recovery, errors.Recovery)} == set()


def test_every_error_has_a_docstring_of_its_own():
    assert [name for name, cls in error_classes().items() if not cls.__dict__.get("__doc__")] == []


def test_an_imported_but_never_raised_error_is_found():
    module = parsed("agentflow.core.x", "from agentflow.errors import DiskFull, SinkError\nraise SinkError('x')\n")
    assert "SinkError" in set(used_names(module))
    assert "DiskFull" not in set(used_names(module))


def test_drawing_is_read_by_depth():
    drawing = "Title\n\n    Root\n    ├── A      one\n    │   └── B  two\n    └── C      three\n"
    assert drawn_tree(drawing) == {"Root": None, "A": "Root", "B": "A", "C": "Root"}
