"""Which records are written: levels by type of event, filters, sampling."""

from __future__ import annotations

import enum
import fnmatch
import re
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from agentflow.runtime.settings import EventFilterSettings, EventLogSettings

_WHOLE = 2**32
_OWN_PART = re.compile(r"/\d+:")  # where the path of a task begins


class EventLogLevel(enum.Enum):
    """How much of an event is written."""

    OFF = "off"
    STANDARD = "standard"
    VERBOSE = "verbose"


class Selection:
    """What is written of what happens.

    Args:
        settings: Levels, filters, sampling.
        default: Level of types that nothing is said of.
    """

    def __init__(self, settings: EventLogSettings, default: EventLogLevel) -> None:
        self._default = default
        self._levels = {name: one.level for name, one in settings.type.items() if one.level is not None}
        include, exclude = settings.include, settings.exclude
        self._has_type = _passing(include, exclude, "types")
        self._has_key = _passing(include, exclude, "keys")
        self._has_action = _passing(include, exclude, "actions")
        self.share = settings.sampling
        """Share of runs that is written."""

    def level(self, event_type: str) -> EventLogLevel:
        """Return the level of a type: its own, else that of the nearest type above it, else the default; off where filters say so."""
        if self._has_type is not None and not self._has_type(event_type):
            return EventLogLevel.OFF
        name = event_type
        while name:
            if name in self._levels:
                return EventLogLevel(self._levels[name])
            name = name.rpartition(".")[0]
        return self._default

    def has_key(self, key: Any) -> bool:  # noqa: ANN401 (any key)
        """Whether runs of a key are written."""
        if self._has_key is None:
            return True
        return self._has_key(key if isinstance(key, str) else msgspec.json.encode(key).decode())

    def has_action(self, name: str) -> bool:
        """Whether records of an action are written."""
        return self._has_action is None or self._has_action(name)

    def has_run(self, run_id: str) -> bool:
        """Whether a run is among those that are written: the same for every owner, and for what follows from the run downstream."""
        if self.share >= 1:
            return True
        return zlib.crc32(origin(run_id).encode()) < self.share * _WHOLE


def origin(run_id: str) -> str:
    """Return the id of the run of a source record that a run follows from, over chained agents and timers; itself if from none."""
    own = _OWN_PART.search(run_id)
    return run_id if own is None else run_id[: own.start()]


def _passing(include: EventFilterSettings, exclude: EventFilterSettings, kind: str) -> Callable[[str], bool] | None:
    """Return what says whether a text passes both filters; None: everything does."""
    wanted, unwanted = (_matcher(getattr(section, kind)) for section in (include, exclude))
    if wanted is None and unwanted is None:
        return None
    return lambda text: (wanted is None or wanted(text)) and not (unwanted is not None and unwanted(text))


def _matcher(patterns: tuple[str, ...]) -> Callable[[str], bool] | None:
    if not patterns:
        return None
    match = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match
    return lambda text: match(text) is not None
