"""Commands that look and run nothing: `validate`, `plan`, `schema`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from agentflow.cli.output import EXIT_DONE, EXIT_WRONG_USE, print_error, print_json, problem_fields
from agentflow.errors import ConfigError, PlanError

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.plan.plan import AgentPlan


def _load(chosen: argparse.Namespace) -> tuple[JobFile, AgentPlan]:
    from agentflow.cli.config_file import load_job_file
    from agentflow.cli.loading import load_program
    from agentflow.plan.plan import AgentPlan

    job_file = load_job_file(chosen.config, profile=chosen.profile, settings=chosen.settings)
    program = load_program(job_file)
    plan = AgentPlan.from_agent(program.agent, job_file.config)
    plan.check_reach()
    return job_file, plan


def validate(chosen: argparse.Namespace) -> int:
    """Check a job file, import its agent and compile its plan.

    Exit status 2 when there is a problem; with ``--json`` the problems are on standard output.
    """
    from agentflow.plan.file_problems import JobFileError

    try:
        job_file, plan = _load(chosen)
    except (ConfigError, PlanError) as error:
        if not chosen.json:
            raise
        problems = (
            [problem_fields(problem) for problem in error.found]
            if isinstance(error, JobFileError)
            else [{"file": chosen.config, "message": text} for text in error.problems]
        )
        print_json({"valid": False, "problems": problems})
        return EXIT_WRONG_USE
    summary = _summary(job_file, plan)
    if chosen.json:
        print_json({"valid": True, "problems": [], **summary})
    else:
        print(f"{chosen.config} is valid")
        for name, value in summary.items():
            print(f"  {name:<11} {', '.join(value) if isinstance(value, list) else value}")
    return EXIT_DONE


def _summary(job_file: JobFile, plan: AgentPlan) -> dict[str, object]:
    composition, settings = job_file.composition, job_file.settings
    summary: dict[str, object] = {
        "job": settings.job,
        "agent": composition.agent,
        "actions": [action.name for action in plan.actions],
        "key-by": composition.key_by,
        "source": composition.source.described,
        "sink": composition.sink.described,
    }
    if composition.dead_letter is not None:
        summary["dead-letter"] = composition.dead_letter.described
    summary["guarantee"] = settings.guarantee
    summary["state"] = settings.state.dir or "in memory"
    return summary


def plan(chosen: argparse.Namespace) -> int:
    """Print the plan of a job's agent."""
    _, agent_plan = _load(chosen)
    if chosen.mermaid:
        sys.stdout.write(agent_plan.to_mermaid())
    elif chosen.json:
        import msgspec

        print(msgspec.json.format(agent_plan.to_json(), indent=2).decode())
    else:
        sys.stdout.write(agent_plan.to_text())
    return EXIT_DONE


def schema(chosen: argparse.Namespace) -> int:
    """Print the JSON schema of the job file, or the description of a section or key."""
    from agentflow.cli.keys import key_table
    from agentflow.cli.schema import describe, describe_text, json_schema
    from agentflow.plan.problems import nearest

    if chosen.describe is None:
        print_json(json_schema())
        return EXIT_DONE
    described_keys = describe(chosen.describe)
    if described_keys is None:
        table = key_table()
        known = [".".join(path) for path in [*table.sections, *table.keys] if path]
        near = nearest(chosen.describe, known)
        hint = f", did you mean '{near}'?" if near else ""
        print_error(f"there is no key or section '{chosen.describe}'{hint}\nhelp: agentflow schema --describe")
        return EXIT_WRONG_USE
    if chosen.json:
        print_json(described_keys)
    else:
        sys.stdout.write(describe_text(chosen.describe))
    return EXIT_DONE
