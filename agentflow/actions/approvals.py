"""Calls of tools that a person has to approve: a durable wait, and what the person says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from agentflow.api.chat_messages import ToolCall
from agentflow.api.runner_context import RunnerContext
from agentflow.api.tools import FunctionTool, Tool, ToolPolicy
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


async def approved(ctx: RunnerContext, call: ToolCall, policy: ToolPolicy, tool: Tool | None) -> dict[str, Any]:
    """Wait until a person approves a call; return its arguments, as they were or as the person has changed them.

    The signal's value is ``{"approved": true | false, "reason": "…", "arguments": {…}, "by": "…"}``; all but the first may be missing.

    Args:
        ctx: Context of the task.
        call: The call; its arguments are an object.
        policy: How it is made.
        tool: The tool; None: it is that of an MCP server, which is not asked before the call may be made.

    Raises:
        Denied: It was denied, the time is up, or what the person has put in the place of its arguments does not fit.
        ToolArgumentsInvalid: It cannot be made: nobody is asked.
    """
    name, arguments = call["function"]["name"], dict(call["function"]["arguments"])  # type: ignore[arg-type]  # see above
    about = {"tool": name, "arguments": {name: value for name, value in arguments.items() if name not in _hidden(tool)}}
    if tool is not None:
        tool.bind(arguments, {})
        about["description"] = tool.metadata.description
    answer = await ctx.wait_for(
        APPROVAL,
        timeout=policy.approval_timeout,
        default={"approved": False, "reason": "nobody has approved it in time"},
        correlation=f"{ctx.run_id}/{call['id']}",
        about=about,
    )
    if isinstance(answer, dict) and answer.get("approved") is True:
        changed = answer.get("arguments")
        return arguments if changed is None else _fitting(changed, name, tool)
    reason = answer.get("reason") if isinstance(answer, dict) else None
    raise Denied(f"The call of tool `{name}` was denied" + (f": {reason}" if reason else "."))


def _fitting(changed: Any, name: str, tool: Tool | None) -> dict[str, Any]:  # noqa: ANN401 (a signal's value)
    """Return the arguments that a person gives instead of the model's.

    Raises:
        Denied: They do not fit. The model's own are not what was approved, and are not taken instead.
    """
    try:
        if not isinstance(changed, dict):
            raise ToolArgumentsInvalid(name, "they are no JSON object")
        if tool is not None:
            tool.bind(changed, {})
    except ToolArgumentsInvalid as error:
        raise Denied(
            f"The call of tool `{name}` was not made. The person's arguments do not fit: {error.why}"
        ) from None
    return changed


def _hidden(tool: Tool | None) -> Collection[str]:
    """Return the injected arguments: what a model says in their place is no argument of the call."""
    return tool.injected_args if isinstance(tool, FunctionTool) else ()
