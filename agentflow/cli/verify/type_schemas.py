"""JSON schemas of types that msgspec decodes, for making up values.

`msgspec.json.schema` would do, but it says nothing of datetimes and times without a time zone than that they are texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from msgspec import inspect

Schema = dict[str, Any]

_FORMATS: dict[type, str] = {
    inspect.DateTimeType: "date-time",
    inspect.TimeType: "time",
    inspect.DateType: "date",
    inspect.TimeDeltaType: "duration",
    inspect.UUIDType: "uuid",
    inspect.DecimalType: "decimal",
}
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "min_length": "minLength",
    "max_length": "maxLength",
    "pattern": "pattern",
}


def schema_of(kind: Any) -> Schema:  # noqa: ANN401 (a type)
    """Return the schema of a type; classes stand in its ``$defs``.

    Raises:
        TypeError: msgspec cannot decode into it.
    """
    schemas = _Schemas()
    root = schemas.of(inspect.type_info(kind))
    return root | {"$defs": schemas.definitions}


class _Schemas:
    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._makers: dict[type, Callable[[Any], Schema]] = {
            inspect.NoneType: lambda _: {"type": "null"},
            inspect.BoolType: lambda _: {"type": "boolean"},
            inspect.IntType: lambda info: {"type": "integer"} | _bounds(info),
            inspect.FloatType: lambda info: {"type": "number"} | _bounds(info),
            inspect.StrType: lambda info: {"type": "string"} | _bounds(info),
            inspect.BytesType: lambda _: {"type": "string", "contentEncoding": "base64"},
            inspect.ByteArrayType: lambda _: {"type": "string", "contentEncoding": "base64"},
            inspect.MemoryViewType: lambda _: {"type": "string", "contentEncoding": "base64"},
            inspect.EnumType: lambda info: {"enum": [member.value for member in info.cls]},
            inspect.LiteralType: lambda info: {"enum": list(info.values)},
            inspect.UnionType: lambda info: {"anyOf": [self.of(one) for one in info.types]},
            inspect.Metadata: lambda info: self.of(info.type) | (info.extra_json_schema or {}),
            inspect.TupleType: lambda info: {"type": "array", "prefixItems": [self.of(one) for one in info.item_types]},
            inspect.DictType: self._mapping,
            inspect.StructType: self._struct,
            **dict.fromkeys(
                (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType), self._items
            ),
            **dict.fromkeys((inspect.DataclassType, inspect.TypedDictType), self._object),
            inspect.NamedTupleType: lambda info: self._named(info, lambda: self._array(info.fields, ())),
        }

    def of(self, info: inspect.Type) -> Schema:
        kind = type(info)
        if kind in _FORMATS:
            return {"type": "string", "format": _FORMATS[kind]}
        return self._makers.get(kind, lambda _: {})(info)

    def _items(self, info: Any) -> Schema:  # noqa: ANN401 (one of several)
        return {"type": "array", "items": self.of(info.item_type), "minItems": info.min_length or 0}

    def _mapping(self, info: inspect.DictType) -> Schema:
        more = self.of(info.value_type)
        return {"type": "object", "additionalProperties": more, "minProperties": info.min_length or 0}

    def _struct(self, info: inspect.StructType) -> Schema:
        tag: list[Schema] = [] if info.tag is None else [{"const": info.tag}]
        if info.array_like:
            return self._named(info, lambda: self._array(info.fields, tag))
        return self._named(info, lambda: self._properties(info.fields, dict(zip([info.tag_field], tag, strict=False))))

    def _object(self, info: Any) -> Schema:  # noqa: ANN401 (one of several)
        return self._named(info, lambda: self._properties(info.fields, {}))

    def _named(self, info: Any, make: Callable[[], Schema]) -> Schema:  # noqa: ANN401 (a type with a class)
        """Return a reference to a definition, which may contain itself."""
        name = f"{info.cls.__name__}-{id(info.cls)}"
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = make()
        return {"$ref": f"#/$defs/{name}"}

    def _properties(self, fields: Iterable[inspect.Field], tag: dict[Any, Schema]) -> Schema:
        properties = tag | {field.encode_name: self.of(field.type) for field in fields}
        required = [*tag, *(field.encode_name for field in fields if field.required)]
        return {"type": "object", "properties": properties, "required": required}

    def _array(self, fields: Iterable[inspect.Field], tag: Iterable[Schema]) -> Schema:
        return {"type": "array", "prefixItems": [*tag, *(self.of(field.type) for field in fields if field.required)]}


def _bounds(info: Any) -> Schema:  # noqa: ANN401 (one of several)
    """Return what a number or a text is bounded by."""
    found = {key: getattr(info, name, None) for name, key in _BOUNDS.items()}
    return {key: value for key, value in found.items() if value is not None}
