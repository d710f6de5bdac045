"""What is reported of a call of a model: facts, and where a trace wants it what was said. Made only where somebody looks at the job."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from agentflow.api.chat_messages import ChatMessage, FilePart, ImagePart, MessageRole, TextPart, Usage
from agentflow.api.chat_models import BaseChatModelConnection, ChatRequest
from agentflow.api.executions import ExecutionEntityTypes, ExecutionProblemCategories, ModelCall
from agentflow.api.runner_context import RunnerContext
from agentflow.api.tools import ToolMetadata
from agentflow.errors import ModelError

_TEXT_MAX: Final = 32_768  # characters of one text of a message
# What providers call the options that a report has; all others may hold anything, and are not reported.
_OPTIONS: Final = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop": "stop_sequences",
    "stop_sequences": "stop_sequences",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "n": "choice_count",
    "reasoning_effort": "reasoning_level",
}


class ModelCallReport:
    """Reports one call: its begin when it is made, its end by `succeed` or `fail`.

    Args:
        ctx: Context of the task.
        name: Name of the chat model.
        connection: Where the call goes.
        request: What is asked.
        call: What is known of the call beside it.
    """

    def __init__(
        self,
        ctx: RunnerContext,
        name: str,
        connection: BaseChatModelConnection,
        request: ChatRequest,
        call: ModelCall,
    ) -> None:
        self._ctx, self._name, self._request, self._call = ctx, name, request, call
        call.model, call.provider = request.model, connection.provider or type(connection).__name__
        host, call.port = connection.address
        call.server = host
        call.options = _options(request.options)
        call.output = "" if request.output_schema is None else "json"
        ctx.report_execution_started(ExecutionEntityTypes.LLM, name, msgspec.to_builtins(call))
        self._began = time.monotonic()

    def succeed(self, answer: ChatMessage, first_at: float | None, cost: float | None) -> None:
        """Report that the model has answered.

        Args:
            answer: What it said.
            first_at: When the first piece came, on the monotonic clock; None: the answer came as a whole.
            cost: What it cost; None: the model has no price.
        """
        call, usage = self._call, answer.usage or Usage()
        call.duration_s = time.monotonic() - self._began
        call.first_token_s = None if first_at is None else first_at - self._began
        call.response_model = answer.extra_args.get("model_name", "")
        call.response_id = answer.extra_args.get("response_id", "")
        call.finish_reason = answer.finish_reason
        for name in Usage.__struct_fields__:
            setattr(call, name, getattr(usage, name))
        call.cost = cost
        content = _content(self._request, answer) if self._ctx.wants_content else None
        self._ctx.report_execution_succeeded(
            ExecutionEntityTypes.LLM, self._name, msgspec.to_builtins(call), content=content
        )

    def fail(self, error: ModelError) -> None:
        """Report that it failed."""
        self._call.duration_s = time.monotonic() - self._began
        content = _content(self._request, None) if self._ctx.wants_content else None
        self._ctx.report_execution_failed(
            ExecutionEntityTypes.LLM,
            self._name,
            msgspec.to_builtins(self._call),
            error,
            ExecutionProblemCategories.MODEL_CALL_FAILED,
            content=content,
        )


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in given.items():
        known = _OPTIONS.get(name)
        is_list = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        if known is not None and (is_list or isinstance(value, int | float | str)):
            found[known] = list(value) if is_list else value
    return found


def _content(request: ChatRequest, answer: ChatMessage | None) -> dict[str, Any]:
    """Return what was said, as OpenTelemetry's schemas of messages have it."""
    count = next(
        (place for place, one in enumerate(request.messages) if one.role != MessageRole.SYSTEM), len(request.messages)
    )
    instructions = [part for message in request.messages[:count] for part in _parts(message)]
    content: dict[str, Any] = {"input_messages": [_message(one) for one in request.messages[count:]]}
    if instructions:
        content["system_instructions"] = instructions
    if request.tools:
        content["tool_definitions"] = _definitions(request.tools)
    if answer is not None:
        content["output_messages"] = [{**_message(answer), "finish_reason": answer.finish_reason}]
    return content


def _definitions(tools: Sequence[ToolMetadata]) -> list[dict[str, Any]]:
    return [
        {"type": "function", "name": one.name, "description": one.description, "parameters": one.args_schema}
        for one in tools
    ]


def _message(message: ChatMessage) -> dict[str, Any]:
    return {"role": str(message.role), "parts": _parts(message)}


def _parts(message: ChatMessage) -> list[dict[str, Any]]:
    if message.role == MessageRole.TOOL:
        call_id = message.extra_args.get("external_id", "")
        return [{"type": "tool_call_response", "id": call_id, "response": cut(message.text)}]
    parts: list[dict[str, Any]] = [
        {"type": "reasoning", "content": cut(one.text)} for one in message.reasoning if one.text
    ]
    parts += [_part(one) for one in message.said]
    for call in message.tool_calls:
        function = call["function"]
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id") or call.get("original_id", ""),
                "name": function["name"],
                "arguments": function["arguments"],
            }
        )
    return parts


def _part(part: TextPart | ImagePart | FilePart) -> dict[str, Any]:
    """Return a part; of bytes only how many they are."""
    if isinstance(part, TextPart):
        return {"type": "text", "content": cut(part.text)}
    where: dict[str, Any] = {
        "modality": "image" if isinstance(part, ImagePart) else "file",
        "mime_type": part.media_type,
    }
    if part.url:
        return {"type": "uri", **where, "uri": part.url}
    if isinstance(part, FilePart) and part.file_id:
        return {"type": "file", **where, "file_id": part.file_id}
    return {"type": "blob", **where, "content": "", "size": len(part.data)}


def cut(text: str) -> str:
    """Return a text as a trace carries it."""
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}… ({len(text):,} characters)"
