"""The job file, the agent, secrets, resources, unfinished runs."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agentflow.cli.doctor.findings import Finding, Subject, error, note, ok, skipped, warning
from agentflow.cli.layers import Layer
from agentflow.errors import ConfigError, PlanError

_RUNS_SHOWN = 3
_SECRET_FILES = ("kafka.security.key-file", "kafka.security.token-file")


def read_subject(
    path: str, profile: str | None, settings: Sequence[str], variables: Mapping[str, str] | None = None
) -> Subject:
    """Read a job file; what is wrong with it is kept, and not raised.

    Args:
        path: The file.
        profile: As in `load_job_file`.
        settings: As in `load_job_file`.
        variables: Environment; None: that of the process.
    """
    from agentflow.cli.config_file import load_job_file, read_layers
    from agentflow.plan.file_problems import ProblemList

    subject = Subject(path, dict(os.environ if variables is None else variables))
    try:
        subject.layer, _ = read_layers(
            path, ProblemList(), profile=profile, settings=settings, variables=subject.variables
        )
        subject.job_file = load_job_file(path, profile=profile, settings=settings, variables=subject.variables)
    except ConfigError as failure:
        subject.problems = failure.problems
    return subject


def job_file(subject: Subject) -> Sequence[Finding]:
    """Say every problem of the job file, as `validate` does."""
    if subject.problems:
        return [error(problem, "a job file that can be read", _validate(subject)) for problem in subject.problems]
    job = subject.job
    return [ok(f"job '{job.settings.job}', {job.composition.source.described} to {job.composition.sink.described}")]


def _validate(subject: Subject) -> str:
    return f"correct it; agentflow validate {subject.path} tells whether it is"


def agent(subject: Subject) -> Sequence[Finding]:
    """Import the agent and compile its plan, as a job does when it starts."""
    from agentflow.cli.loading import load_program
    from agentflow.plan.plan import AgentPlan

    try:
        subject.program = load_program(subject.job)
        plan = AgentPlan.from_agent(subject.program.agent, subject.job.config)
        plan.check_reach()
        subject.plan = plan
    except (ConfigError, PlanError) as failure:
        return [
            error(problem, "an agent that can be imported and compiled", _validate(subject))
            for problem in failure.problems
        ]
    actions = ", ".join(action.name for action in subject.plan.actions)
    return [ok(f"{subject.job.composition.agent}: {actions}")]


def resources(subject: Subject) -> Sequence[Finding]:
    """Build the models, tools and servers that the agent declares, as a job does at their first use; none is opened."""
    from agentflow.actions.policies import chat_policy
    from agentflow.api.chat_models import BaseChatModelSetup
    from agentflow.runtime.resources import Resources

    assert subject.plan is not None, "needs the agent"
    declared = subject.plan.resources
    if not declared:
        return [skipped("the agent declares none")]
    found: list[Finding] = []
    built = Resources().of(subject.plan)
    for one in declared:
        try:
            made = built.get_resource(one.name, one.type)
            if isinstance(made, BaseChatModelSetup):
                chat_policy(made, subject.plan.config)
        except ConfigError as failure:
            found += [
                error(problem, "a resource that can be built", _validate(subject)) for problem in failure.problems
            ]
    names = ", ".join(f"{resource.name} ({resource.type.value})" for resource in declared)
    return found or [ok(f"{names}: all of them can be built")]


def secrets(subject: Subject) -> Sequence[Finding]:
    """Look where secrets come from, and who can read them."""
    assert subject.layer is not None, "needs the job file"
    findings = [*_references(subject.layer, subject.variables), *_literals(subject.layer), *_files(subject)]
    return findings or [skipped("the job's own keys have no references and no secrets")]


def _references(layer: Layer, variables: Mapping[str, str]) -> Iterator[Finding]:
    from agentflow.cli.references import references_in

    found = [
        (".".join(path), reference)
        for path, entry in layer.items()
        if entry.value is not None and not entry.is_literal
        for reference in references_in(entry.value)
    ]
    broken = 0
    for key, reference in found:
        name = reference.name
        if reference.kind == "file":
            problem = _unreadable(name)
            if problem:
                broken += 1
                yield error(
                    f"{key}: the file '{name}' cannot be read: {problem}",
                    "a file with the secret",
                    "correct the path, or mount it",
                )
            yield from _open_to_others(name, f"{key}: {name}")
        elif not variables.get(name) and reference.default is not None:
            yield note(f"{key}: the variable {name} is not set, its default counts")
        elif name not in variables:
            broken += 1
            yield error(
                f"{key}: the variable {name} is not set", "its value", f"set it, or give a default: ${{env:{name}:-…}}"
            )
    if found and not broken:
        yield ok(
            f"{len(found)} references, all of them lead somewhere"
            if len(found) > 1
            else "1 reference, which leads somewhere"
        )


def _unreadable(path: str) -> str:
    """Say why a file cannot be read; empty: it can."""
    try:
        Path(path).read_bytes()
    except (OSError, ValueError) as failure:
        return (getattr(failure, "strerror", None) or str(failure)).lower()
    return ""


def _literals(layer: Layer) -> Iterator[Finding]:
    """Secrets that stand in the file itself, or in a flag, which every process of the machine can see."""
    from agentflow.cli.keys import key_table
    from agentflow.cli.references import has_reference, references_in
    from agentflow.plan.yaml_source import Scalar

    keys = key_table().keys
    for path, entry in layer.items():
        key = keys.get(path)
        if (
            key is None
            or not key.is_secret
            or entry.is_literal
            or not isinstance(entry.value, Scalar)
            or not entry.value.text
        ):
            continue
        defaults = [reference.default for reference in references_in(entry.value) if reference.default]
        if entry.value.value is not None and (defaults or not has_reference(entry.value)):
            where = "a flag" if entry.key.source == "--set" else entry.key.label
            yield warning(
                f"{key.name} is written out in {where}{', as a default' if defaults else ''}",
                "a reference",
                f"write {path[-1]}: ${{env:NAME}} or ${{file:/run/secrets/name}}, and change the secret: it has been seen",
            )


def _files(subject: Subject) -> Iterator[Finding]:
    if subject.job_file is None:
        return
    security = subject.job.settings.kafka.security
    for key, path in zip(_SECRET_FILES, (security.key_file, security.token_file), strict=True):
        if path:
            yield from _open_to_others(path, f"{key}: {path}")


def _open_to_others(path: str, shown: str) -> Iterator[Finding]:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return  # told where it is read
    if mode & stat.S_IROTH:
        yield warning(
            f"{shown} can be read by every user of this machine (mode {stat.S_IMODE(mode):04o})",
            "a file that only the user of the job can read",
            f"chmod 600 {path} (Kubernetes: defaultMode: 0400)",
        )


def unfinished_runs(subject: Subject) -> Sequence[Finding]:
    """Replay what is recorded of unfinished runs with the agent as it is now, as `agentflow runs check` does."""
    from agentflow.cli.run_commands import diverging

    found = asyncio.run(diverging(subject.job))
    if not found:
        return [ok("none that would diverge from the agent as it is now")]
    shown = "\n".join(f"{run.run} {run.task}: {run.message}" for run in found[:_RUNS_SHOWN])
    more = f"\nand {len(found) - _RUNS_SHOWN} more" if len(found) > _RUNS_SHOWN else ""
    fix = "let ctx.patch tell old runs from new ones (agentflow runs check shows all); or start with --accept"
    text = f"{len(found)} would diverge from the agent as it is now:\n{shown}{more}"
    if subject.job.settings.run.accept_changes:
        return [
            warning(text, "the same steps as are recorded", f"run.accept-changes lets them fail by their policy; {fix}")
        ]
    return [error(text, "the same steps as are recorded", fix)]
