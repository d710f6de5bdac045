"""What a check finds, and what a check is."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.errors import AgentflowError

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.cli.layers import Layer
    from agentflow.cli.loading import Program
    from agentflow.connectors.kafka.topics import JobTopics, TopicReport
    from agentflow.plan.plan import AgentPlan


class Result(enum.StrEnum):
    """How a finding is to be taken, in the order of its weight."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing, nothing to do."""
    SKIPPED = "skipped"
    """Not looked at; the finding says why."""
    WARNING = "warning"
    """The job starts, and will be slow, or fail on a bad day."""
    ERROR = "error"
    """The job does not start, or loses something."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that a check has found.

    Attributes:
        result: How it is to be taken.
        found: What there is.
        expected: What should be; empty where that is plain.
        fix: What to do about it.
    """

    result: Result
    found: str
    expected: str = ""
    fix: str = ""


def ok(found: str) -> Finding:
    """Return a finding of something that is as it should be."""
    return Finding(Result.OK, found)


def note(found: str, fix: str = "") -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(Result.NOTE, found, "", fix)


def skipped(reason: str) -> Finding:
    """Return why nothing was looked at."""
    return Finding(Result.SKIPPED, reason)


def warning(found: str, expected: str, fix: str) -> Finding:
    """Return a finding that will hurt some day."""
    return Finding(Result.WARNING, found, expected, fix)


def error(found: str, expected: str, fix: str) -> Finding:
    """Return a finding that keeps the job from starting, or costs it something."""
    return Finding(Result.ERROR, found, expected, fix)


def error_of(failure: AgentflowError, fix: str = "") -> Finding:
    """Return an error of the engine as a finding."""
    where = "  ".join(f"{name} {value}" for name, value in failure.where.items())
    found = f"{failure.what}\n{where}" if where else failure.what
    return error(found, failure.expected, failure.fix or fix)


class Subject(msgspec.Struct):
    """What is looked at. The checks fill in what later ones need.

    Attributes:
        path: The job file, as it was given.
        variables: The environment.
        layer: The keys that are set, as they are written; None where the file cannot be read.
        job_file: The job file; None where it has problems.
        problems: These.
        program: The user's code, when the check 'agent' has loaded it.
        plan: Its plan.
        topics: Topics of a Kafka job, when the check 'topics' has looked at them.
        report: What it found.
    """

    path: str
    variables: Mapping[str, str]
    layer: Layer | None = None
    job_file: JobFile | None = None
    problems: Sequence[str] = ()
    program: Program | None = None
    plan: AgentPlan | None = None
    topics: JobTopics | None = None
    report: TopicReport | None = None

    @property
    def job(self) -> JobFile:
        """The job file, for checks that are made only where there is one."""
        assert self.job_file is not None, "a check without its condition"
        return self.job_file


Look = Callable[[Subject], Sequence[Finding] | Awaitable[Sequence[Finding]]]


class Check(msgspec.Struct, frozen=True):
    """One check. A coroutine is run on the loop, a function in a thread of its own.

    Attributes:
        group: What it is about; checks of one group stand together.
        name: Unique.
        look: Does it; whatever it raises becomes a finding.
        timeout_s: Longest time that it may take.
        needs: Checks whose success it rests on: where one of them has failed, it is skipped.
        unless: Says why there is nothing to look at; empty: there is.
        stuck: What to do when it does not end in time.
        is_first: On the main thread, before all others: it runs code of the user's modules.
    """

    group: str
    name: str
    look: Look
    timeout_s: float = 5
    needs: tuple[str, ...] = ()
    unless: Callable[[Subject], str] = lambda subject: ""  # noqa: ARG005
    stuck: str = "look at what it waits for"
    is_first: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """A check that was made, or was skipped.

    Attributes:
        check: The check.
        findings: At least one.
        seconds: How long it took.
        is_blocked: It was skipped because another one had failed.
        is_late: It did not end in time; what it began may go on.
    """

    check: Check
    findings: tuple[Finding, ...]
    seconds: float = 0.0
    is_blocked: bool = False
    is_late: bool = False

    @property
    def result(self) -> Result:
        """The weightiest of its findings."""
        return max((finding.result for finding in self.findings), key=list(Result).index)

    @property
    def is_failed(self) -> bool:
        """Whether checks that need it make no sense."""
        return self.is_blocked or self.result is Result.ERROR

    def rows(self) -> list[dict[str, Any]]:
        """Return its findings for ``--json``."""
        return [
            {
                "group": self.check.group,
                "check": self.check.name,
                "result": finding.result.value,
                "found": finding.found,
                "expected": finding.expected or None,
                "fix": finding.fix or None,
                "seconds": round(self.seconds, 3),
            }
            for finding in self.findings
        ]
