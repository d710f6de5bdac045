"""The keys at the top of a job file: agents may stand beside them, and who reads agents alone passes over them."""

from __future__ import annotations

from typing import Final

import msgspec

from agentflow.runtime.settings import JobSettings, key_name

_COMPOSITION = (
    "agent", "source", "sink", "dead-letter", "key-by", "event-listeners", "log", "config", "profile",
)  # fmt: skip
JOB_KEYS: Final = frozenset({key_name(field.name) for field in msgspec.structs.fields(JobSettings)} | {*_COMPOSITION})
