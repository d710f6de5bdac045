"""Reports of actions, for who looks at the job: see `agentflow.api.executions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentflow.api.executions import ExecutionStatus

Content = Mapping[str, Any]
"""What was said to a model or a tool, and what it said: plain values by name. It reaches traces that ask for it, and nothing else."""


class Reporting:
    """The part of `RunnerContext` that takes reports."""

    __slots__ = ()
    if TYPE_CHECKING:
        _services: Any
        _task: Any

    @property
    def is_observed(self) -> bool:
        """Whether somebody wants what this attempt reports; else a report reaches nobody, and need not be made."""
        services = self._services
        return services.report is not None and (services.wants_reports is None or services.wants_reports(self._task))

    @property
    def wants_content(self) -> bool:
        """Whether somebody wants to see what models and tools are told and say, of this attempt."""
        wants = self._services.wants_content
        return wants is not None and wants(self._task)

    def report_execution_started(
        self, entity_type: str, entity_name: str, entity_metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Report that something begins inside of this action."""
        if (report := self._services.report) is not None:
            report(self._task, ExecutionStatus.STARTED, entity_type, entity_name, entity_metadata)

    def report_execution_succeeded(
        self,
        entity_type: str,
        entity_name: str,
        entity_metadata: Mapping[str, Any] | None = None,
        *,
        content: Content | None = None,
    ) -> None:
        """Report that it has come to its end."""
        if (report := self._services.report) is not None:
            report(self._task, ExecutionStatus.SUCCESS, entity_type, entity_name, entity_metadata, content=content)

    def report_execution_failed(
        self,
        entity_type: str,
        entity_name: str,
        entity_metadata: Mapping[str, Any] | None,
        error: BaseException,
        problem_category: str | None = None,
        *,
        content: Content | None = None,
    ) -> None:
        """Report that it failed with ``error``; the category is one of `ExecutionProblemCategories`, or one's own."""
        if (report := self._services.report) is not None:
            status, named = ExecutionStatus.FAILED, (entity_type, entity_name)
            report(self._task, status, *named, entity_metadata, error, problem_category, content=content)
