"""Settings as a mapping, as `Engine` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from agentflow.environment.settings import settings_of
from agentflow.errors import ConfigError
from agentflow.runtime.settings import JobSettings


def defaults(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its default, written as a person would."""
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, msgspec.Struct):
            yield from defaults(value, f"{prefix}{name}.")
        elif name.endswith("_ms"):
            yield f"{prefix}{name}".removesuffix("_ms"), None if value is None else timedelta(milliseconds=value)
        else:
            yield f"{prefix}{name}".removesuffix("_bytes"), value


@pytest.mark.parametrize(("key", "value"), [pytest.param(*one, id=one[0]) for one in defaults(JobSettings())])
def test_every_key_takes_its_default(key, value):
    settings, options = settings_of({key.replace("_", "-"): value})
    assert settings == JobSettings()
    assert options == {}


def test_nested_and_dotted_keys_are_the_same():
    nested = {"admin": {"port": 9464}, "event-log": {"type": {"_input_event": {"level": "off"}}}}
    dotted = {"admin.port": 9464, "event-log.type": {"_input_event": {"level": "off"}}}
    assert settings_of(nested) == settings_of(dotted)
    assert settings_of(nested)[0].admin.port == 9464


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"admin.port": 65_536}, "admin.port: 65536 is no value for it"),
        ({"admin.port": "9464"}, "admin.port: '9464' is no value for it"),
        ({"checkpoint.interval": 5}, 'a duration has a unit, such as "5s"'),
        ({"checkpoint.intervall": "5s"}, "did you mean 'checkpoint.interval'?"),
        ({"event-log.level": "loud"}, "event-log.level: 'loud' is no value for it"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(values, problem):
    with pytest.raises(ConfigError, match=r"(?s).*") as told:
        settings_of(values)
    assert problem in str(told.value)
