"""Whether a function can be an action, and how it is called. Nothing is called here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

from agentflow.plan.action import ActionKind
from agentflow.plan.problems import ProblemList

_EXPECTED = "a function (event, ctx) -> None, def or async def"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_function(function: object, place: str, problems: ProblemList) -> bool:
    """Report why ``function`` cannot be an action; return whether it can."""
    wrong = _wrong_kind(function)
    found = [wrong] if wrong is not None else [_generates(function), _wrong_signature(function)]
    for what, fix in filter(None, found):
        problems.add(what, place=place, expected=_EXPECTED, fix=fix)
    return not any(found)


def kind_of(function: Callable[..., Any], *, is_blocking: bool) -> ActionKind:
    """Return how an action function is called; partials and callable objects count as what they call.

    A `def` whose body calls `durable_execute` runs in a thread: it waits for the journal.
    """
    body = _body(function)
    if inspect.iscoroutinefunction(body):
        return ActionKind.ASYNC
    code = getattr(inspect.unwrap(body), "__code__", None)  # type: ignore[arg-type]
    return ActionKind.BLOCKING if is_blocking or _names(code, "durable_execute") else ActionKind.SYNC


def _names(code: object, name: str) -> bool:
    """Whether a function's code, or that of one defined in it, names an attribute."""
    return isinstance(code, CodeType) and (name in code.co_names or any(_names(one, name) for one in code.co_consts))


def _body(function: object) -> object:
    """Return the function that runs in the end: behind partials and bound methods, or a callable object's ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not isinstance(function, type):
        return getattr(type(function), "__call__", function)  # noqa: B004 (the method itself is wanted)
    return function


def _wrong_kind(function: object) -> tuple[str, str] | None:
    if isinstance(function, type):
        return (
            f"{function.__name__} is a class, not a function",
            "write a function, or add an instance that has __call__",
        )
    if isinstance(function, (classmethod, property)) or not callable(function):
        return f"{function!r} is of type {type(function).__name__}, which cannot be called", "decorate a plain function"
    return None


def _generates(function: object) -> tuple[str, str] | None:
    body = _body(function)
    if inspect.isasyncgenfunction(body) or inspect.isgeneratorfunction(body):
        return (
            "it is a generator (it has a 'yield'), and would never run",
            "send events with ctx.send_event, without 'yield'",
        )
    return None


def _wrong_signature(function: Any) -> tuple[str, str] | None:  # noqa: ANN401 (anything callable)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return f"{function!r} does not tell its parameters", "wrap it in a function (event, ctx)"
    shown = f"({', '.join(str(parameter.replace(annotation=parameter.empty)) for parameter in parameters)})"
    positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    required = [parameter for parameter in positional if parameter.default is parameter.empty]
    if positional and positional[0].name in {"self", "cls"}:
        first = positional[0].name
        return (
            f"its parameters are {shown}: an action is no method, nothing is passed as '{first}'",
            f"remove '{first}'; state between calls belongs into ctx.short_term_memory",
        )
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if keywords:
        return (
            f"its parameters are {shown}: nothing is passed as {', '.join(keywords)}",
            "give keyword-only parameters a default",
        )
    is_open = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    if len(required) > 2 or (len(positional) < 2 and not is_open):
        return (
            f"its parameters are {shown}; it is called with exactly two: the event and the context",
            "take (event, ctx)",
        )
    return None
