"""Calls of tools: all calls of a turn at the same time, each one a durable step, each outcome a text for the model.

wanted ── not allowed, no such tool ─► the model is told
       ── arguments do not fit ──────► the model is told
       ── needs approval ────────────► a wait (inbox); denied: the model is told
       ── step: call, with timeout ──► its result; its error is a text for the model, or a generic one
       ── in doubt, not idempotent ──► the reconciler says what became of it; without one, the model is told
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from agentflow.actions.approvals import Denied, approved
from agentflow.actions.call_reports import cut
from agentflow.actions.outcomes import is_outcome
from agentflow.actions.policies import tool_defaults
from agentflow.actions.tool_lists import declared_tool, find_tool, remote_policy
from agentflow.api.callables import call_anywhere
from agentflow.api.chat_messages import ToolCall
from agentflow.api.chat_models import BaseChatModelSetup
from agentflow.api.durations import duration_ms
from agentflow.api.encoding import encodable, encodable_text, text_of
from agentflow.api.executions import ExecutionEntityTypes, ExecutionProblemCategories, ToolExecutionMetadataKeys
from agentflow.api.resources import ResourceType
from agentflow.api.runner_context import RunnerContext
from agentflow.api.steps import Done, OnInDoubt, Reconcile, StepIntent, Verdict, reconcile
from agentflow.api.tools import FunctionTool, InjectedArg, Tool, ToolParameterSource, ToolPolicy, ToolType
from agentflow.errors import (
    AgentflowError,
    BudgetExhausted,
    InDoubt,
    ModelError,
    OutputInvalid,
    StepFailed,
    ToolArgumentsInvalid,
)

_NO_ERROR = ""


class ToolOutcome(msgspec.Struct, omit_defaults=True):
    """What came of a call.

    Attributes:
        text: For the model.
        error: What went wrong, in full; empty: nothing.
    """

    text: str
    error: str = _NO_ERROR


async def outcomes_of(
    ctx: RunnerContext, setup: BaseChatModelSetup, calls: Sequence[ToolCall], tools: Sequence[Any] = ()
) -> list[ToolOutcome]:
    """Call tools at the same time; return what came of it, in the order of the calls.

    Args:
        ctx: Context of the task.
        setup: The chat model whose tools may be called.
        calls: The calls, each with an id.
        tools: More tools that may be called.
    """
    found: list[ToolOutcome] = await ctx.gather(*(_outcome(ctx, setup, call, tools) for call in calls))
    return found


async def _outcome(ctx: RunnerContext, setup: BaseChatModelSetup, call: ToolCall, tools: Sequence[Any]) -> ToolOutcome:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    tool = declared_tool(ctx, setup, tools, name)
    if tool is None and not ctx.resources.names(ResourceType.MCP_SERVER):
        return _missing(name, setup)
    if not isinstance(arguments, Mapping):
        what = f"The arguments for tool `{name}` are no JSON object: {arguments}"
        return ToolOutcome(what, what)
    policy = remote_policy(ctx, setup, tools, name) if tool is None else tool.policy
    request = _ToolRequest(ctx, setup, tools, tool, call, policy)
    if (run := getattr(tool, "run_in", None)) is not None:  # an agent: its own steps are durable, it is none itself
        try:
            return ToolOutcome(await run(ctx, dict(arguments)))
        except ToolArgumentsInvalid as error:
            return _misfit(error)
        except (ModelError, OutputInvalid, BudgetExhausted) as error:
            return request.failed(error)
    if policy.requires_approval:
        try:
            arguments = await approved(ctx, call, policy, tool)
        except ToolArgumentsInvalid as error:
            return _misfit(error)
        except Denied as denied:
            return ToolOutcome(denied.text, denied.text)
    try:
        outcome: ToolOutcome = await ctx.durable_execute_async(
            request.call,
            call["id"],
            dict(arguments),
            name=f"tool:{name}",
            on_in_doubt=request.on_in_doubt,
            retry=policy.retry,
        )
    except InDoubt as error:
        return ToolOutcome(f"Nobody knows whether tool `{name}` was called: the process ended meanwhile.", error.what)
    except StepFailed as error:
        return request.failed(error)
    except AgentflowError:
        raise
    except Exception as error:  # noqa: BLE001 (what the tool raised at its last retry)
        return request.failed(error)
    return outcome


class _ToolRequest:
    """Calls one tool, inside of a durable step.

    What MCP servers offer is looked up in there: a replay asks no server.

    Args:
        ctx: Context of the task.
        setup: The chat model that wants it.
        tools: More tools that it may call.
        declared: The tool; None: it may be that of an MCP server.
        call: The call.
        policy: How it is made.
    """

    def __init__(
        self,
        ctx: RunnerContext,
        setup: BaseChatModelSetup,
        tools: Sequence[Any],
        declared: Tool | None,
        call: ToolCall,
        policy: ToolPolicy,
    ) -> None:
        self._ctx = ctx
        self._setup = setup
        self._tools = tools
        self._tool = declared
        self._call = call
        self._policy = policy
        self._name = call["function"]["name"]
        self._defaults = tool_defaults(ctx.config)

    async def call(self, call_id: str, arguments: dict[str, Any]) -> ToolOutcome:  # noqa: ARG002 (it is in the digest)
        """Call the tool; its error is an outcome, unless it is to be called again.

        Raises:
            Exception: What the tool raises, where it has a retry policy.
        """
        ctx, name, tool = self._ctx, self._name, self._tool
        metadata = self._metadata() if ctx.is_observed else {}
        ctx.report_execution_started(ExecutionEntityTypes.TOOL, name, metadata)
        began, limit = time.monotonic(), None
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                tool = tool or await find_tool(ctx, self._setup, self._tools, name)
                if tool is None:
                    return _missing(name, self._setup)
                bound = tool.bind(arguments, injected_arguments(ctx, tool), meta=self._meta(tool))
                await tool
                result = await self._called(bound)
            outcome = self._outcome(result)
        except ToolArgumentsInvalid as error:
            self._report_failure(error, metadata, began, arguments)
            return _misfit(error)
        except BaseException as error:
            if not is_outcome(error):
                raise
            late = limit is not None and limit.expired() and isinstance(error, TimeoutError) and not text_of(error)
            told = TimeoutError(f"it took longer than {self._timeout_s:g} s") if late else error
            self._report_failure(told, metadata, began, arguments)
            if self._policy.retry is None:
                return self.failed(told)
            if (ending := self._recordable(told)) is error:
                raise
            raise ending from None
        metadata = {**metadata, "duration_s": time.monotonic() - began}
        content = {"arguments": arguments, "result": cut(outcome.text)} if ctx.wants_content else None
        ctx.report_execution_succeeded(ExecutionEntityTypes.TOOL, name, metadata, content=content)
        return outcome

    def _metadata(self) -> dict[str, Any]:
        """Return what observers are told of the call."""
        kind = ToolType.MCP if self._tool is None else self._tool.tool_type()
        return {
            ToolExecutionMetadataKeys.TOOL_CALL_ID: self._call["id"],
            ToolExecutionMetadataKeys.TOOL_TYPE: str(kind),
        }

    def _meta(self, tool: Tool) -> dict[str, Any] | None:
        """Return what goes along with the call; functions have no place for it."""
        return None if isinstance(tool, FunctionTool) else {"agentflow/idempotency-key": self._ctx.idempotency_key}

    @property
    def on_in_doubt(self) -> OnInDoubt:
        """What to do about a call in doubt: the tool's reconciler is asked about the tool's arguments, and says its result.

        Of a tool of an MCP server, the server says whether it can be called again, where its configuration does not.
        """
        if self._tool is None and self._policy.reconciler is None:
            return reconcile(self._is_repeatable)
        policy = self._policy.on_in_doubt
        if not isinstance(policy, Reconcile):
            return policy
        ask = policy.function

        async def verdict(intent: StepIntent) -> Any:  # noqa: ANN401 (a verdict)
            asked = msgspec.structs.replace(intent, function=self._name, args=(), kwargs=intent.args[1])
            try:
                said = await self._called(functools.partial(ask, asked))
            except BaseException as error:
                if not is_outcome(error) or (ending := self._recordable(error)) is error:
                    raise
                raise ending from None
            return Done(self._outcome(said.result)) if isinstance(said, Done) else said

        return reconcile(verdict)

    async def _called(self, bound: Callable[[], Any]) -> Any:  # noqa: ANN401 (a tool's result)
        """Call a tool: a coroutine function here, any other in a thread."""
        return await call_anywhere(bound, (), {}, self._ctx._services.in_thread)  # noqa: SLF001 (the context's engine side)

    async def _is_repeatable(self, intent: StepIntent) -> Verdict:  # noqa: ARG002 (the signature of a reconciler)
        try:
            tool = await find_tool(self._ctx, self._setup, self._tools, self._name)
        except AgentflowError:  # the call itself will say so
            return Verdict.NOT_DONE
        return Verdict.NOT_DONE if tool is None or tool.policy.idempotent else Verdict.CANNOT_TELL

    @property
    def _timeout_s(self) -> float:
        own = self._policy.timeout
        return (self._defaults.timeout_ms if own is None else duration_ms(own)) / 1000

    def _recordable(self, error: BaseException) -> Exception:
        """Return an error as a step may end with it: without secrets, and never as what ends a process or cancels a task."""
        if isinstance(error, Exception) and self._ctx.resources.scrub(text_of(error)) == text_of(error):
            return error
        kind, what = f"{type(error).__module__}.{type(error).__qualname__}", self._ctx.resources.scrub(text_of(error))
        return StepFailed(f"{kind}: {what}", original=kind, original_text=what, traceback="")

    def _report_failure(
        self, error: BaseException, metadata: dict[str, Any], began: float, arguments: dict[str, Any]
    ) -> None:
        self._ctx.report_execution_failed(
            ExecutionEntityTypes.TOOL,
            self._name,
            {**metadata, "duration_s": time.monotonic() - began},
            error,
            ExecutionProblemCategories.TOOL_CALL_FAILED,
            content={"arguments": arguments} if self._ctx.wants_content else None,
        )

    def failed(self, error: BaseException) -> ToolOutcome:
        """Return what an error is for the model, by policy, and in full."""
        what = error.original_text if isinstance(error, StepFailed) else text_of(error)
        kind = error.original.rpartition(".")[2] if isinstance(error, StepFailed) else type(error).__name__
        full = self._ctx.resources.scrub(f"{kind}: {what}" if what else kind)
        told = f"Tool `{self._name}` execute failed."
        if self._defaults.error_text == "generic":
            return ToolOutcome(told, full)
        if isinstance(error, AgentflowError) and not isinstance(
            error, StepFailed
        ):  # what to do about it is for its author
            return ToolOutcome(f"{told} {self._ctx.resources.scrub(f'{kind}: {error.what}')}", full)
        return ToolOutcome(f"{told} {full}", full)

    def _outcome(self, result: object) -> ToolOutcome:
        try:
            text = _text(result)
        except Exception as error:  # noqa: BLE001 (of what the tool returned; it has done what it does, and is not called again for that)
            what = self._ctx.resources.scrub(f"{type(error).__name__}: {text_of(error)}")
            told = f"Tool `{self._name}` was called, but its result cannot be shown."
            return ToolOutcome(told if self._defaults.error_text == "generic" else f"{told} {what}", what)
        text = self._ctx.resources.scrub(text)
        most = self._policy.result_max or self._defaults.result_max
        if len(text) > most:
            text = f"{text[:most]}\n[the result has {len(text):,} characters; this is the beginning]"
        return ToolOutcome(text)


def _missing(name: str, setup: BaseChatModelSetup) -> ToolOutcome:
    return ToolOutcome(f"Tool `{name}` does not exist.", f"tool '{name}' is none of chat model '{setup.name}'")


def _misfit(error: ToolArgumentsInvalid) -> ToolOutcome:
    return ToolOutcome(f"{error.what}. Call it again with the right ones.", error.what)


def injected_arguments(ctx: RunnerContext, tool: Tool) -> dict[str, Any]:
    """Return the arguments that the model neither sees nor sets.

    Raises:
        ValueError: The configuration, or memory, has none.
    """
    wanted = tool.injected_args if isinstance(tool, FunctionTool) else {}
    return {name: _injected(ctx, tool, name, source) for name, source in wanted.items()}


def _injected(ctx: RunnerContext, tool: Tool, name: str, source: InjectedArg) -> Any:  # noqa: ANN401 (a user's value)
    key = source.key or name
    if source.source == ToolParameterSource.IDEMPOTENCY_KEY:
        return ctx.idempotency_key
    if source.source == ToolParameterSource.CONFIG:
        values = ctx.config.to_dict()
        is_there, value = key in values, values.get(key)
    else:
        is_sensory = source.source == ToolParameterSource.SENSORY_MEMORY
        memory = ctx.sensory_memory if is_sensory else ctx.short_term_memory
        is_there = memory.is_exist(key)
        value = _plain(memory.get(key))
    if not is_there:
        raise ValueError(
            f"argument '{name}' of tool '{tool.metadata.name}' is injected from {source.source} '{key}', which has no value"
        )
    return value


def _plain(value: Any) -> Any:  # noqa: ANN401 (memory values)
    """Return what memory has as plain values, objects as dicts."""
    if not hasattr(value, "get_field_names"):
        return value
    return {name: _plain(value.get(name)) for name in value.get_field_names()}


def _text(result: object) -> str:
    """Return a result as text, half characters written out."""
    if isinstance(result, str):
        return encodable_text(result)
    try:
        return msgspec.json.encode(result, enc_hook=_encoded).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(encodable(msgspec.to_builtins(result, enc_hook=_encoded))).decode()


def _encoded(value: Any) -> Any:  # noqa: ANN401 (a tool's result)
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else str(value)
