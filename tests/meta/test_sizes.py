"""Files and functions stay small: core files 400 lines, others 600, functions 60 body lines without docstrings."""

from __future__ import annotations

import ast

import pytest

from tests.meta.source_tree import CODE_DIRS, ROOT, docstring_of, functions, python_files

CORE_LINES_MAX = 400
FILE_LINES_MAX = 600
BODY_LINES_MAX = 60


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement to the last, docstrings (also of nested functions) left out."""
    own = docstring_of(function)
    body = function.body[1:] if own else function.body
    if not body:
        return 0
    nested = [text for node in body for inner in ast.walk(node) if (text := docstring_of(inner))]
    first = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", []))])
    return function.end_lineno - first + 1 - sum(text.end_lineno - text.lineno + 1 for text in nested)


def test_no_file_is_too_long():
    too_long = []
    for path in python_files(*CODE_DIRS):
        name = path.relative_to(ROOT).as_posix()
        limit = CORE_LINES_MAX if name.startswith("agentflow/core/") else FILE_LINES_MAX
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limit:
            too_long.append(f"{name}: {lines} lines, limit {limit}")
    assert too_long == []


def test_no_function_is_too_long():
    too_long = [
        f"{path.relative_to(ROOT)}:{function.lineno}: {function.name} has {lines} body lines, limit {BODY_LINES_MAX}"
        for path in python_files(*CODE_DIRS)
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if (lines := body_lines(function)) > BODY_LINES_MAX
    ]
    assert too_long == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f(): return 1", 1),
        ('def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n\n    return a', 3),
        ('def f():\n    """Only this."""', 0),
        ('def f():\n    def g():\n        """Inner."""\n        return 1\n    return g', 3),
        ("def f():\n    # why\n    @d\n    def g():\n        return 1\n    return g", 4),
    ],
)
def test_body_lines_leave_docstrings_out(source, lines):
    assert body_lines(next(functions(ast.parse(source)))) == lines
