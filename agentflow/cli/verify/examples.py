"""Values made up from a type: from its JSON schema, which msgspec and pydantic both have for what they decode."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from agentflow.api.codecs import Codec
from agentflow.api.events import EventType
from agentflow.cli.verify.type_schemas import schema_of
from agentflow.errors import ConfigError
from agentflow.plan.payloads import is_pydantic, reference
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.codecs import RECORD_KEY, KeyBy, input_decoder

_TEXT = "verify"
_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "decimal": "1",
    "email": "verify@example.org",
    "uri": "https://example.org/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
}
_DEPTH_MAX = 16
_HINT = "give a value: --value '{…}'"


class _NoExampleError(Exception):
    """Nothing can be made up here; its text says where and why."""


def made_up_value(plan: AgentPlan, key_by: KeyBy, codec: Codec) -> object:
    """Return a value that the agent's first action with ``input=`` takes, with the field of ``key-by`` in it.

    Raises:
        ConfigError: None can be made up.
    """
    input_type = next(
        (
            action.input_type
            for action in plan.actions
            if action.input_type and EventType.InputEvent in action.trigger_types
        ),
        None,
    )
    path = key_by.split(".") if isinstance(key_by, str) and key_by != RECORD_KEY else []
    if input_type is None:
        value: Any = {}
    else:
        value = _example(input_type, path[:1])
    if path:
        _put(value, path)
    if input_type is not None:
        try:
            input_decoder(codec, input_type)(codec.encode(value))
        except Exception as error:
            raise ConfigError(
                [f"no value of {reference(input_type)} can be made up: {type(error).__name__}: {error}\nhelp: {_HINT}"]
            ) from error
    return value


def _put(value: object, path: list[str]) -> None:
    """Put a key where ``key-by`` looks for it, unless there is one."""
    for part in path[:-1]:
        if not isinstance(value, dict):
            return
        value = value.setdefault(part, {})
    if isinstance(value, dict):
        value.setdefault(path[-1], _TEXT)


def _example(input_type: Any, also: list[str]) -> object:  # noqa: ANN401 (a type)
    try:
        schema = input_type.model_json_schema() if is_pydantic(input_type) else schema_of(input_type)
        return example_of(schema, also)
    except (TypeError, _NoExampleError) as error:
        raise ConfigError([f"no value of {reference(input_type)} can be made up: {error}\nhelp: {_HINT}"]) from error


def example_of(schema: dict[str, Any], also: list[str] | None = None) -> Any:  # noqa: ANN401 (any JSON value)
    """Return a value that fits a JSON schema, with as little in it as may be.

    Args:
        schema: The schema; references lead into its ``$defs``.
        also: Properties of the outermost object that are wanted although they may be left out.
    """
    return _Examples(schema.get("$defs", {})).of(schema, "", 0, also or [])


class _Examples:
    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions

    def of(self, schema: dict[str, Any], path: str, depth: int, also: list[str]) -> Any:  # noqa: ANN401 (any JSON value)
        if depth > _DEPTH_MAX:
            msg = f"'{path}' is nested without end"
            raise _NoExampleError(msg)
        if "$ref" in schema:
            return self.of(self._definitions[schema["$ref"].rpartition("/")[2]], path, depth + 1, also)
        for choice in ("const", "enum", "examples"):
            if choice in schema:
                return schema[choice] if choice == "const" else schema[choice][0]
        for choice in ("anyOf", "oneOf", "allOf"):
            if choice in schema:
                return self._first(schema[choice], path, depth, also)
        kind = schema.get("type", "any")
        makers: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema, path, depth, also),
            "array": lambda: self._array(schema, path, depth),
            "string": lambda: _string(schema, path),
            "integer": lambda: _number(schema, path, step=1),
            "number": lambda: _number(schema, path, step=0),
            "boolean": lambda: True,
            "null": lambda: None,
        }
        return makers.get(kind, lambda: _TEXT)()

    def _first(self, schemas: list[dict[str, Any]], path: str, depth: int, also: list[str]) -> Any:  # noqa: ANN401
        """Return a value of the first alternative that has one; null comes last."""
        failure: _NoExampleError | None = None
        for schema in sorted(schemas, key=lambda schema: schema.get("type") == "null"):
            try:
                return self.of(schema, path, depth + 1, also)
            except _NoExampleError as error:
                failure = failure or error
        raise failure or _NoExampleError(f"'{path}' has no alternative")

    def _object(self, schema: dict[str, Any], path: str, depth: int, also: list[str]) -> dict[str, Any]:
        properties = schema.get("properties", {})
        wanted = dict.fromkeys([*schema.get("required", ()), *(name for name in also if name in properties)])
        made = {
            name: self.of(properties[name], f"{path}.{name}" if path else name, depth + 1, [])
            for name in wanted
            if name in properties
        }
        more = schema.get("additionalProperties")
        for number in range(schema.get("minProperties", 0) - len(made)):
            made[f"{_TEXT}{number}"] = self.of(more if isinstance(more, dict) else {}, path, depth + 1, [])
        return made

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> list[Any]:
        made = [self.of(item, path, depth + 1, []) for item in schema.get("prefixItems", ())]
        items = schema.get("items")
        more = items if isinstance(items, dict) else {}
        return made + [self.of(more, path, depth + 1, []) for _ in range(schema.get("minItems", 0) - len(made))]


def _string(schema: dict[str, Any], path: str) -> str:
    if "contentEncoding" in schema:
        return "YWdlbnRmbG93"
    text = _FORMATS.get(schema.get("format", ""), _TEXT)
    text = text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
    if "pattern" in schema and re.search(schema["pattern"], text) is None:
        msg = f"'{path}' has to match {schema['pattern']}"
        raise _NoExampleError(msg)
    return text


def _number(schema: dict[str, Any], path: str, step: int) -> float:
    """Return 1, or the nearest number that is allowed; ``step`` 0: between whole numbers too."""
    step = schema.get("multipleOf", step)
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    lowest = above if above is not None else low
    highest = below if below is not None else high
    if step:
        number = 1 if lowest is None or lowest < 1 else lowest + (step if above is not None else 0)
        if highest is not None and number >= highest:
            number = highest - (step if below is not None else 0)
        number = -(-number // step) * step if highest is None else number // step * step
    elif lowest is not None and highest is not None:
        number = (lowest + highest) / 2
    else:
        number = max(1.0, lowest + 1 if lowest is not None else 1.0)
        number = min(number, highest - 1 if highest is not None else number)
    limits = [
        low is None or number >= low,
        high is None or number <= high,
        above is None or number > above,
        below is None or number < below,
    ]
    if not all(limits):
        msg = f"'{path}' has bounds that leave no number"
        raise _NoExampleError(msg)
    return number
