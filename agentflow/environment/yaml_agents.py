"""YAML agents for code: what a file holds beside them is a job's, and is passed over."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Final

import msgspec

from agentflow.plan.compilation import Declared
from agentflow.plan.yaml_agents import YamlDocument, load_documents
from agentflow.runtime.settings import JobSettings, key_name

_COMPOSITION = (
    "agent", "source", "sink", "dead-letter", "key-by", "event-listeners", "log", "config", "profile",
)  # fmt: skip
JOB_KEYS: Final = frozenset({key_name(field.name) for field in msgspec.structs.fields(JobSettings)} | {*_COMPOSITION})
"""The keys at the top of a job file."""


def load_agents(*paths: str | PathLike[str], resources: Sequence[Declared] = ()) -> YamlDocument:
    """Read YAML agents: ``load_agents("agents.yaml").agents["support"]``, and ``.resources``, which they share.

    Args:
        paths: The files; what one shares, the others see.
        resources: What agents may name although no file has it, as (name, type, descriptor or instance).

    Raises:
        JobFileError: With all problems, each with its line.
    """
    known = [(kind, name) for name, kind, _ in resources]
    return load_documents(*map(str, paths), other_keys=JOB_KEYS, known=known)
