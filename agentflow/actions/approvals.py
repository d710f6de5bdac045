"""Calls of tools that a person has to approve: a durable wait, and what the person says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from agentflow.api.chat_messages import ToolCall
from agentflow.api.runner_context import RunnerContext
from agentflow.api.tools import FunctionTool, Tool
from agentflow.errors import ToolArgumentsInvalid

APPROVAL: Final = "approval"
"""Name of the signal; its correlation is the run's id and the call's, so that no late answer is taken for another call's."""


class Denied(Exception):
    """The call may not be made.

    Attributes:
        text: What the model is told.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


async def approved(ctx: RunnerContext, tool: Tool, call: ToolCall) -> dict[str, Any]:
    """Wait until a person approves a call; return its arguments, as they were or as the person has changed them.

    The signal's value is ``{"approved": true | false, "reason": "…", "arguments": {…}, "by": "…"}``; all but the first may be missing.
    Nobody is asked about a call that cannot be made: its arguments come back as they are, and the call says what is wrong with them.

    Raises:
        Denied: It was denied, or the time is up.
    """
    arguments = dict(call["function"]["arguments"])  # type: ignore[arg-type]  # it was looked at
    try:
        tool.bind(arguments, {})
    except ToolArgumentsInvalid:
        return arguments
    answer = await ctx.wait_for(
        APPROVAL,
        timeout=tool.policy.approval_timeout,
        default={"approved": False, "reason": "nobody has approved it in time"},
        correlation=f"{ctx.run_id}/{call['id']}",
        about={
            "tool": tool.metadata.name,
            "arguments": {name: value for name, value in arguments.items() if name not in _hidden(tool)},
            "description": tool.metadata.description,
        },
    )
    if isinstance(answer, dict) and answer.get("approved") is True:
        changed = answer.get("arguments")
        return changed if isinstance(changed, dict) else arguments
    reason = answer.get("reason") if isinstance(answer, dict) else None
    raise Denied(f"The call of tool `{tool.metadata.name}` was denied" + (f": {reason}" if reason else "."))


def _hidden(tool: Tool) -> Collection[str]:
    """Return the injected arguments: what a model says in their place is no argument of the call."""
    return tool.injected_args if isinstance(tool, FunctionTool) else ()
