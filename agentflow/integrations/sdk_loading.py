"""Imports an SDK where a connection is opened: that takes seconds, and the loop must not stand still meanwhile."""

from __future__ import annotations

import asyncio
import importlib

from agentflow.errors import NotConfigured


async def load(extra: str, *modules: str) -> None:
    """Import the modules of an SDK, which comes with an extra of agentflow, in a thread.

    Raises:
        NotConfigured: It is not installed.
    """
    try:
        await asyncio.to_thread(_import, modules)
    except ModuleNotFoundError as error:
        raise missing_package(extra, error.name or modules[0]) from None


def missing_package(extra: str, name: str) -> NotConfigured:
    """Return the error of a connection whose SDK is not installed."""
    return NotConfigured(f"package '{name}' is not installed", fix=f"pip install 'agentflow[{extra}]'")


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)
