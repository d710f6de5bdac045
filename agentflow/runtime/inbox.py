"""What people say to runs that wait for an approval: found by the wait's id, sent as a signal that only this wait takes."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from typing import Any

import msgspec

from agentflow.actions.approvals import APPROVAL
from agentflow.api.resources import ResourceType
from agentflow.api.tools import Tool
from agentflow.errors import ConfigError, ToolArgumentsInvalid, UnknownWait
from agentflow.plan.planned_resources import PlannedResource
from agentflow.runtime.inspection import RunView, StepView, WaitView, is_for_signal, run_digits, wait_view
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.settings import RedactionSettings
from agentflow.runtime.signals import encode_signal

UNREDACTED = Redaction(RedactionSettings(secret_names=False))
"""For whoever sends something back to a run: its key has to be what it is."""
_DIGITS_LEAST = 4
_ANSWERED = "the first answer counts"


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a person says: the value of the signal, as the run and its records have it.

    Attributes:
        approved: Whether the call may be made.
        by: Who says so. The model is not told.
        reason: Why; of a denied call the model is told.
        arguments: Instead of those that the model wants; None: its own.
    """

    approved: bool
    by: str
    reason: str = ""
    arguments: dict[str, Any] | None = None


def this_user() -> str:
    """Return who uses this process, as the operating system calls them."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name  # what the environment says is anybody's word
    except KeyError:  # a container may have a user without a name
        return f"uid {os.getuid()}"


def may_name_run(wait_id: str, agent: int, run: str) -> bool:
    """Whether the id of a wait, or its first digits, can be of a run."""
    digits = run_digits(agent, run)
    return digits.startswith(wait_id[: len(digits)])


def find_wait(runs: Iterable[RunView], wait_id: str) -> WaitView:
    """Return the open wait of an id, or of its first digits.

    Raises:
        UnknownWait: There is none, or it has ended.
        ConfigError: The digits are too few, or of several.
    """
    if len(wait_id) < _DIGITS_LEAST:
        raise ConfigError([f"'{wait_id}' names no wait: give at least {_DIGITS_LEAST} digits of its id"])
    steps = [(wait_view(run, step), step) for run in runs for step in run.steps if is_for_signal(step)]
    found = [(wait, step) for wait, step in steps if wait.id.startswith(wait_id)]
    waiting = [wait for wait, step in found if step.kind == "wait"]
    if len(waiting) > 1:
        several = ", ".join(f"{wait.id} (key {wait.key!r}, '{wait.name}')" for wait in waiting)
        raise ConfigError([f"'{wait_id}' is the beginning of several ids: {several}\nhelp: give more digits"])
    if waiting:
        return waiting[0]
    if found:
        raise already_answered(*found[0])
    raise UnknownWait(
        f"nobody waits under the id '{wait_id}'",
        expected="the id of an open wait",
        fix="it may be answered, and its run over: look into the inbox again",
    )


def already_answered(wait: WaitView, step: StepView | None = None) -> UnknownWait:
    """Return the error of a second answer; ``step``: what is recorded of the first one; None: it is on its way."""
    how = f"it has ended: {step.preview}" if step is not None else "its answer is on its way to the job"
    return UnknownWait(f"wait {wait.id} is answered already; {how}", where={"run": wait.run}, expected=_ANSWERED)


def check_arguments(wait: WaitView, verdict: Verdict, resources: Iterable[PlannedResource]) -> None:
    """Refuse arguments that do not fit the tool, where it is one of the agent's; one that only a request has is not known here.

    Args:
        wait: The wait, with what it is about as it is.
        verdict: What is said.
        resources: Of the agent.

    Raises:
        ConfigError: They do not fit.
    """
    if verdict.arguments is None or not isinstance(wait.about, dict):
        return
    for tool in (planned.instance for planned in resources if planned.type is ResourceType.TOOL):
        # A request may have brought another tool of this name.
        if isinstance(tool, Tool) and _told_of(tool) == (wait.about.get("tool"), wait.about.get("description")):
            try:
                tool.bind(verdict.arguments, {})
            except ToolArgumentsInvalid as error:
                taken = ", ".join(tool.metadata.args_schema.get("properties", {}))
                expected = f"expected: the whole arguments of the call, also those that stay as they are: {taken}"
                raise ConfigError(
                    [f"wait {wait.id}: {error.what}\n{expected}\nhelp: it waits still: answer again"]
                ) from None


def _told_of(tool: Tool) -> tuple[str, str]:
    return tool.metadata.name, tool.metadata.description


def answer_document(wait: WaitView, verdict: Verdict) -> bytes:
    """Return the signal that ends a wait, and no other one.

    Args:
        wait: The wait, with the key as it is.
        verdict: What is said.

    Raises:
        ConfigError: It does not wait for an approval.
        TypeError: The arguments cannot be encoded.
    """
    if wait.name != APPROVAL:
        raise ConfigError(
            [
                f"wait {wait.id} is for signal '{wait.name}', which is neither approved nor denied\nhelp: send it as a signal"
            ]
        )
    return encode_signal(
        wait.key,
        wait.name,
        msgspec.to_builtins(verdict),
        correlation=wait.correlation,
        run=wait.run,
        step=wait.step,
        agent=wait.agent,
    )
