"""References in texts: ``${env:NAME}``, ``${env:NAME:-default}``, ``${file:path}``; ``$${`` is a literal ``${``."""

from __future__ import annotations

import re
from typing import Final

REFERENCE: Final = re.compile(r"\$(?P<escape>\$)\{|\$\{(?P<kind>[A-Za-z]\w*):(?P<rest>[^}]*)(?P<close>\}?)")
"""Finds references, and what looks like one."""

MASK: Final = "***"
"""Stands where a secret stood."""

_SECRET_NAME = re.compile("passw|secret|token$|apikey|authorization|credential|privatekey").search


def has_reference(text: str) -> bool:
    """Whether a text has a reference (or something that looks like one)."""
    return REFERENCE.search(text) is not None


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a secret most likely: ``api_key``, ``password``, ``auth-token``."""
    return _SECRET_NAME(name.lower().replace("_", "").replace("-", "")) is not None
