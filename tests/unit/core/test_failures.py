"""What a failure of the job tells."""

from __future__ import annotations

from agentflow.core.effects import FailJob
from agentflow.core.failures import job_failure
from agentflow.core.records import ErrorReport


def test_the_place_of_a_failure_behind_many_tasks_is_told_by_its_ends() -> None:
    path = "/".join(["0:start", *["0:chat_model_action/0:tool_call_action"] * 40, "0:last"])
    reason = {"job": "j", "agent": "A", "action": "last", "task": path, "key": "k", "completed-tasks": "start,chat"}
    failure = job_failure(FailJob(ErrorReport("KeyError", "'x'"), reason))
    assert failure.where["completed-tasks"] == "start,chat"
    shown = failure.where["task"]
    assert (len(shown), shown[:8], shown[-7:]) == (201, "0:start/", "/0:last")
