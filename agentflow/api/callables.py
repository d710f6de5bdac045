"""What a callable is below its bindings, and where it is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from types import FunctionType, MethodType
from typing import Any

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function in a thread."""


def innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function below `functools.partial` and bound methods."""
    while type(function) is not FunctionType:
        if isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, functools.partial):
            function = function.func
        else:
            break
    return function


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Return whether a function is a coroutine function, also below `functools.partial` and bound methods."""
    function = innermost(function)
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True  # as nearly always, and ten times as fast
    return inspect.iscoroutinefunction(function)


async def call_anywhere(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    in_thread: InThread,
) -> Any:  # noqa: ANN401 (a user's value)
    """Call a function: a coroutine function here, any other in a thread."""
    if is_coroutine_function(function):
        return await function(*args, **kwargs)
    result = await in_thread(functools.partial(function, *args, **kwargs))
    return await result if inspect.isawaitable(result) else result
