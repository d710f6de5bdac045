"""Which events an action sends, as far as its source tells. It is read as text; nothing of it runs.

Conservative: found are ``Event("name", …)``, ``Event(EventType.X)``, ``OutputEvent(…)``, subclasses with an ``EVENT_TYPE`` and
``ctx.set_timer(…)`` in the action's own body, with names as its module knows them now. What a called function sends is not
followed, so a type that is not found may still be sent.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping
from typing import Any

from agentflow.api.events import Event, EventType


def sent_types(function: Callable[..., Any]) -> list[str] | None:
    """Return the event types in the order of the source, each once; None when there is no source to read."""
    while isinstance(function, functools.partial):
        function = function.func
    code = function if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    names = _names(code)
    calls = sorted(
        (node for node in ast.walk(tree) if isinstance(node, ast.Call)), key=lambda node: (node.lineno, node.col_offset)
    )
    found: dict[str, None] = {}
    for call in calls:
        event_type = _sent_type(call, names)
        if event_type:
            found[event_type] = None
    return list(found)


def _names(code: object) -> Mapping[str, Any]:
    function: Any = inspect.unwrap(getattr(code, "__func__", code))  # type: ignore[arg-type]
    closure = getattr(function, "__closure__", None) or ()
    free = function.__code__.co_freevars if isinstance(function, types.FunctionType) else ()
    cells = {name: cell.cell_contents for name, cell in zip(free, closure, strict=True) if _is_set(cell)}
    return {**getattr(function, "__globals__", {}), **cells}


def _is_set(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (an empty cell raises)
    except ValueError:
        return False
    return True


def _sent_type(call: ast.Call, names: Mapping[str, Any]) -> str | None:
    if isinstance(call.func, ast.Attribute) and call.func.attr == "set_timer":
        return EventType.TimerEvent
    called = _value(call.func, names)
    if not isinstance(called, type) or not issubclass(called, Event):
        return None
    if called.EVENT_TYPE:
        return called.EVENT_TYPE
    given = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "type"), None)
    value = _value(given, names) if given is not None else None
    return value if isinstance(value, str) else None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:  # noqa: ANN401 (any constant)
    """Return what a constant, a name or a dotted name stands for; None when it cannot be known without running code."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, names)
        if isinstance(owner, (types.ModuleType, type)):
            return vars(owner).get(node.attr)
    return None
