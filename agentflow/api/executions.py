"""What user code reports of the work inside of an action: calls of models, of tools, of parsers.

Reports go to whoever looks at the job (event log, traces); where nobody does, a report is one comparison. They never fail an action.

    ExecutionReporters.started(ctx, ExecutionEntityTypes.LLM, "gpt", {LLMExecutionMetadataKeys.MODEL: "gpt-x"})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec


class ExecutionEntityTypes:
    """What is executed."""

    ACTION: Final = "action"
    STEP: Final = "step"
    LLM: Final = "llm"
    PARSER: Final = "parser"
    TOOL: Final = "tool"


class ExecutionProblemCategories:
    """Why something failed, as a few words to count by."""

    ACTION_EXECUTION_FAILED: Final = "action_execution_failed"
    STEP_CALL_FAILED: Final = "step_call_failed"
    MODEL_CALL_FAILED: Final = "model_call_failed"
    MODEL_OUTPUT_PARSE_ERROR: Final = "model_output_parse_error"
    TOOL_CALL_FAILED: Final = "tool_call_failed"
    INPUT_REJECTED: Final = "input_rejected"
    CANCELLED: Final = "cancelled"


class LLMExecutionMetadataKeys:
    """Names of what is said about a call of a model."""

    MODEL: Final = "model"


class ModelCall(msgspec.Struct, omit_defaults=True):
    """What the engine reports of a call of a model: the metadata, by these names. What is not known is left out.

    Attributes:
        model: The model that was asked.
        provider: Whose it is; ``gen_ai.provider.name`` of OpenTelemetry. The class of a connection that does not say.
        server: Host of the provider.
        port: Port there.
        attempt: Number of the call; above 1 it is made again, after one that failed.
        limit_wait_s: How long it had waited for limits of rates and concurrency.
        options: What was asked for beside messages: ``max_tokens``, ``temperature``, ``top_p``, ``top_k``, ``seed``, ``stop_sequences``,
            ``frequency_penalty``, ``presence_penalty``, ``choice_count``, ``reasoning_level``.
        output: ``json``: an answer by a schema was asked for.
        is_streamed: The provider sends the answer in pieces.
        prompt: Hash of the prompt, or the name of an MCP server's.
        duration_s: How long the call took.
        first_token_s: How long it took to the first piece.
        response_model: The model that answered.
        response_id: The provider's id of the answer.
        finish_reason: Why the model ended.
        input_tokens, output_tokens, cached_tokens, cache_write_tokens, reasoning_tokens: See `Usage`.
        cost: By the price table; None: the model has no price.
    """

    model: str = ""
    provider: str = ""
    server: str = ""
    port: int | None = None
    attempt: int = 1
    limit_wait_s: float = 0.0
    options: dict[str, Any] = {}
    output: str = ""
    is_streamed: bool = False
    prompt: str = ""
    duration_s: float = 0.0
    first_token_s: float | None = None
    response_model: str = ""
    response_id: str = ""
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None


class ToolExecutionMetadataKeys:
    """Names of what is said about a call of a tool."""

    TOOL_REQUEST_EVENT_ID: Final = "toolRequestEventId"
    TOOL_CALL_ID: Final = "toolCallId"
    EXTERNAL_ID: Final = "externalId"
    TOOL_TYPE: Final = "toolType"
    MCP_SERVER: Final = "mcpServer"
    SKILL_NAME: Final = "skillName"
    SKILL_RESOURCE_PATH: Final = "skillResourcePath"


class ExecutionStatus:
    """How an execution, a task or a run stands."""

    STARTED: Final = "started"
    SUCCESS: Final = "success"
    FAILED: Final = "failed"
    REUSED: Final = "reused"
    RETRYING: Final = "retrying"
    SKIPPED: Final = "skipped"
    DEAD_LETTERED: Final = "dead-lettered"
    CANCELLED: Final = "cancelled"


class ExecutionLifecycleEvents:
    """Types of the event log's records about executions; they are no events that actions could listen to."""

    STARTED: Final = "_execution_started_event"
    FINISHED: Final = "_execution_finished_event"
    FAILED: Final = "_execution_failed_event"
    REUSED: Final = "_execution_reused_event"
    STATUS_BY_TYPE: Final = {
        STARTED: ExecutionStatus.STARTED,
        FINISHED: ExecutionStatus.SUCCESS,
        FAILED: ExecutionStatus.FAILED,
        REUSED: ExecutionStatus.REUSED,
    }
    """The status that a record of each type has."""


class TaskOutcomeEvents:
    """Types of the event log's records about what follows from a failure, or a cancellation."""

    RETRY: Final = "_task_retry_event"
    SKIPPED: Final = "_task_skipped_event"
    CANCELLED: Final = "_task_cancelled_event"
    DEAD_LETTER: Final = "_dead_letter_event"
    JOB_FAILED: Final = "_job_failed_event"


class ExecutionReporter(Protocol):
    """Takes reports; `RunnerContext` does."""

    def report_execution_started(
        self, entity_type: str, entity_name: str, entity_metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Report that something begins: of ``entity_type``, with a name, and with what else is to be known of it."""
        ...

    def report_execution_succeeded(
        self, entity_type: str, entity_name: str, entity_metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Report that it has come to its end."""
        ...

    def report_execution_failed(
        self,
        entity_type: str,
        entity_name: str,
        entity_metadata: Mapping[str, Any] | None,
        error: BaseException,
        problem_category: str | None = None,
    ) -> None:
        """Report that it failed with ``error``."""
        ...


class ExecutionReporters:
    """Reports through a context that takes them; nothing happens with one that does not.

    The end of an execution belongs to the oldest open start of its type and name, in this action, with the same ``toolCallId`` or
    ``externalId`` where the metadata have one.
    """

    @staticmethod
    def started(ctx: object, entity_type: str, name: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Report that something begins."""
        report = getattr(ctx, "report_execution_started", None)
        if report is not None:
            report(entity_type, name, metadata)

    @staticmethod
    def succeeded(ctx: object, entity_type: str, name: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Report that it has come to its end."""
        report = getattr(ctx, "report_execution_succeeded", None)
        if report is not None:
            report(entity_type, name, metadata)

    @staticmethod
    def failed(
        ctx: object,
        entity_type: str,
        name: str,
        metadata: Mapping[str, Any] | None,
        error: BaseException,
        category: str | None = None,
    ) -> None:
        """Report that it failed; ``category`` is one of `ExecutionProblemCategories`, or one's own."""
        report = getattr(ctx, "report_execution_failed", None)
        if report is not None:
            report(entity_type, name, metadata, error, category)
