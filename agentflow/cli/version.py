"""`agentflow version`."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

from agentflow import __version__

_SHOWN = ("msgspec", "uvloop", "rocksdict", "structlog", "PyYAML", "common-expression-language")


def installed_version(package: str) -> str | None:
    """Return the version of an installed package; None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def version(chosen: argparse.Namespace) -> int:
    """Print the version; with ``--json`` also those of Python and of the packages that matter in a report."""
    if not chosen.json:
        print(f"agentflow {__version__}")
        return 0
    from agentflow.cli.output import print_json

    print_json(
        {
            "agentflow": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {package: installed_version(package) for package in _SHOWN},
        }
    )
    return 0
