"""Typed options for user code: `ctx.config.get(MY_OPTION)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

OptionT = TypeVar("OptionT")


class ConfigOption(msgspec.Struct, Generic[OptionT], frozen=True):
    """One named, typed option.

    Args:
        key: Dotted key (``shop.threshold``).
        type: ``str``, ``int``, ``float`` or ``bool`` (or any type that msgspec converts to).
        default: Value where the configuration has none.
    """

    key: str
    type: type[OptionT]
    default: OptionT | None = None


class Configuration:
    """Flat, read-mostly options of a job for its agents: the job file's ``config:`` section, or set in code."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values: dict[str, Any] = {}
        self._put("", values or {})

    def _put(self, prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                self._put(f"{prefix}{name}.", value)
            else:
                self._values[f"{prefix}{name}"] = value

    def get(self, option: ConfigOption[OptionT]) -> OptionT | None:
        """Return the option's value as its type, or its default.

        Raises:
            ValueError: The configured value is not of the option's type.
        """
        if option.key not in self._values:
            return option.default
        try:
            return msgspec.convert(self._values[option.key], option.type, strict=False)
        except msgspec.ValidationError as error:
            msg = f"config key '{option.key}': {self._values[option.key]!r} is not {option.type.__name__} ({error})"
            raise ValueError(msg) from error

    def set(self, option: ConfigOption[OptionT], value: OptionT) -> None:
        """Set an option (before the job starts)."""
        self._values[option.key] = value

    def get_str(self, key: str, default: str | None = None) -> str | None:
        """Return ``key`` as str."""
        return self.get(ConfigOption(key, str, default))

    def get_int(self, key: str, default: int | None = None) -> int | None:
        """Return ``key`` as int."""
        return self.get(ConfigOption(key, int, default))

    def get_float(self, key: str, default: float | None = None) -> float | None:
        """Return ``key`` as float."""
        return self.get(ConfigOption(key, float, default))

    def get_bool(self, key: str, default: bool | None = None) -> bool | None:  # noqa: FBT001 (as in Flink Agents)
        """Return ``key`` as bool."""
        return self.get(ConfigOption(key, bool, default))

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of all values by dotted key."""
        return dict(self._values)
