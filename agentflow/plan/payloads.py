"""What is declared as a value: JSON values, and types that inputs can be decoded into."""

from __future__ import annotations

import math
from typing import Any

import msgspec

_DEPTH_MAX = 100
_SCALARS = (str, int, float)


def json_problem(value: object, path: str = "", depth: int = 0) -> str | None:
    """Say where and why ``value`` is not JSON; None when it is (lists and tuples are arrays)."""
    where = f" at '{path}'" if path else ""
    if depth > _DEPTH_MAX:
        return f"it is nested more than {_DEPTH_MAX} deep"
    if value is None or type(value) in {bool, int}:
        return None
    if type(value) is float:
        return None if math.isfinite(value) else f"{value!r}{where} has no JSON form"
    if type(value) is str:
        return None if _is_unicode(value) else f"{value!r}{where} holds half of a surrogate pair"
    if type(value) in {list, tuple}:
        items: list[tuple[str, object]] = [(f"{path}[{n}]", item) for n, item in enumerate(value)]  # type: ignore[arg-type, var-annotated]
    elif isinstance(value, dict):
        for key in value:
            if type(key) is not str or not _is_unicode(key):
                return (
                    f"key {key!r}{where} is a {type(key).__name__}, not a str"
                    if type(key) is not str
                    else f"key {key!r}{where} is no text"
                )
        items = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    else:
        return f"{type(value).__name__}{where} is no JSON value"
    for item_path, item in items:
        problem = json_problem(item, item_path, depth + 1)
        if problem is not None:
            return problem
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def input_type_problem(input_type: Any) -> str | None:  # noqa: ANN401 (a type, or a generic alias)
    """Say why values cannot be decoded into ``input_type``; None when they can."""
    if is_pydantic(input_type):
        return None
    try:
        described = msgspec.inspect.type_info(input_type)
    except NameError as error:
        return f"its annotations cannot be resolved: {error}"
    except TypeError as error:
        return str(error)
    unknown = _custom_type(described, set())
    if unknown is None:
        return None
    if is_pydantic(unknown):
        return f"the pydantic model {unknown.__name__} cannot be part of another type, only input= itself"
    return f"{getattr(unknown, '__qualname__', unknown)} is none of the types that can be decoded"


def is_pydantic(candidate: object) -> bool:
    """Whether this is a pydantic model class, told by its method."""
    return isinstance(candidate, type) and callable(getattr(candidate, "model_validate", None))


def reference(thing: object) -> str:
    """Return the name by which stored plans compare functions and types: ``module:qualname``, or the text of an alias."""
    qualname = getattr(thing, "__qualname__", None)
    if isinstance(qualname, str) and not getattr(thing, "__args__", None):
        return f"{getattr(thing, '__module__', None)}:{qualname}"
    return repr(thing)


def _custom_type(described: object, seen: set[int]) -> Any:  # noqa: ANN401 (a class)
    """Return a class somewhere inside a described type that msgspec leaves to hooks; None when there is none."""
    if id(described) in seen:
        return None
    seen.add(id(described))
    if isinstance(described, (msgspec.inspect.CustomType, msgspec.inspect.ExtType)):
        return getattr(described, "cls", described)
    if isinstance(described, (tuple, list)):
        parts: list[object] = list(described)
    elif isinstance(described, (msgspec.inspect.Type, msgspec.inspect.Field)):
        parts = [getattr(described, name) for name in described.__struct_fields__ if name not in {"cls", "default"}]
    else:
        return None
    for part in parts:
        found = _custom_type(part, seen)
        if found is not None:
            return found
    return None
