"""Python, the packages, the event loop."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence

from agentflow import __version__
from agentflow.cli.doctor.findings import Finding, Subject, error, note, ok, warning
from agentflow.cli.doctor.requirements import Requirement, is_within, requirements_of
from agentflow.cli.job_file import FileSink, FileSource, JsonlSource
from agentflow.connectors.stores import is_url

_EXTRAS = {"kafka": "kafka", "parquet": "arrow", "arrow": "arrow", "http": "http"}
"""Kind of a source or sink → the extra that it needs."""


def python(subject: Subject) -> Sequence[Finding]:  # noqa: ARG001 (one signature for all checks)
    """Look at the interpreter."""
    version, kind = platform.python_version(), platform.python_implementation()
    found = f"{kind} {version}, {sys.executable}"
    try:
        wanted = importlib.metadata.metadata("agentflow")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        wanted = ""
    if not is_within(version, wanted):
        return [error(found, f"Python {wanted}", "make a virtual environment with a newer Python")]
    if kind != "CPython":
        return [warning(found, "CPython, which the tests run on", "take CPython")]
    if sys.flags.optimize:
        return [
            error(
                f"{found}, with -O or PYTHONOPTIMIZE",
                "assertions: they stop a job whose invariants are broken, before it writes",
                "start Python without -O, and unset PYTHONOPTIMIZE",
            )
        ]
    return [ok(found)]


def libraries(subject: Subject) -> Sequence[Finding]:  # noqa: ARG001 (one signature for all checks)
    """Look at the packages that are always needed."""
    needed = [requirement for requirement in requirements_of("agentflow") if not requirement.extra]
    if not needed:
        return [
            warning(
                f"agentflow {__version__} is not installed as a package, so nobody knows what it needs",
                "an installation by pip",
                "pip install agentflow, or in a checkout: pip install -e .",
            )
        ]
    shown = ", ".join(f"{one.package} {one.installed}" for one in needed)
    return _misfits(needed, "agentflow") or [ok(f"agentflow {__version__}; {shown}")]


def extras_of(subject: Subject) -> list[str]:
    """Return the extras that the job needs."""
    composition = subject.job.composition
    extras = []
    for part in (composition.source, composition.sink, composition.dead_letter):
        if part is None:
            continue
        extras.append(_EXTRAS.get(str(part.__struct_config__.tag), ""))
        if isinstance(part, JsonlSource) and part.follow and part.poll_interval_ms is None:
            extras.append("follow")
        if isinstance(part, FileSource | FileSink):
            extras += [
                "object-store" for path in ([part.path] if isinstance(part.path, str) else part.path) if is_url(path)
            ]
    if is_url(subject.job.settings.savepoint.dir or ""):
        extras.append("object-store")
    from agentflow.cli.doctor.network_checks import otlp_endpoints

    is_observed = subject.job.settings.admin.port is not None or otlp_endpoints(subject)
    extras.append("telemetry" if is_observed else "")
    return [extra for extra in dict.fromkeys(extras) if extra]


def extras(subject: Subject) -> Sequence[Finding]:
    """Look at the packages that this job needs."""
    wanted = extras_of(subject)
    if not wanted:
        return [ok("the job needs none")]
    every = requirements_of("agentflow")
    findings: list[Finding] = []
    for extra in wanted:
        needed = [requirement for requirement in every if requirement.extra == extra]
        shown = ", ".join(f"{one.package} {one.installed}" for one in needed)
        findings += _misfits(needed, f"agentflow[{extra}]") or [ok(f"{extra}: {shown}")]
    return findings


def _misfits(needed: Sequence[Requirement], package: str) -> list[Finding]:
    wrong = [requirement for requirement in needed if requirement.problem]
    if not wrong:
        return []
    found = ", ".join(requirement.problem for requirement in wrong)
    expected = ", ".join(f"{requirement.package}{requirement.range}" for requirement in wrong)
    return [error(found, expected, f"pip install '{package}'")]


def event_loop(subject: Subject) -> Sequence[Finding]:  # noqa: ARG001 (one signature for all checks)
    """Look at which event loop jobs get."""
    from agentflow.environment.openers import new_event_loop

    loop = new_event_loop()
    kind = type(loop).__module__.partition(".")[0]
    loop.close()
    if kind == "uvloop":
        return [ok(f"uvloop {Requirement('uvloop', '', '').installed}")]
    if sys.platform == "win32":
        return [note(f"{kind}'s own: there is no uvloop for this platform")]
    return [warning(f"{kind}'s own", "uvloop, which makes jobs faster", "pip install uvloop")]
