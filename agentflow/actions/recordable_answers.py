"""Answers of models as they can be recorded: a call that is paid for is not lost for what the model has made up.

An integer of more than 64 bits, a number that is none, half a character, a thousand brackets: none has a place in a record. In arguments
of tools they make a text of them, as malformed JSON does; elsewhere they are written out.
"""

from __future__ import annotations

import msgspec

from agentflow.api.chat_messages import ChatMessage, Part, TextPart, ToolCall, recordable_arguments
from agentflow.api.encoding import NOT_ENCODABLE, encodable, encodable_text, encode_msgpack


def recordable(answer: ChatMessage) -> ChatMessage:
    """Return an answer of a model as it can be recorded; as it is, where it can be."""
    if answer.tool_calls:
        answer = msgspec.structs.replace(answer, tool_calls=[_recordable_call(call) for call in answer.tool_calls])
    try:
        encode_msgpack(answer)
    except NOT_ENCODABLE:
        return _written_out(answer)
    return answer


def _recordable_call(call: ToolCall) -> ToolCall:
    function = call["function"]
    arguments = recordable_arguments(function["arguments"])
    return call if arguments is function["arguments"] else {**call, "function": {**function, "arguments": arguments}}


def _written_out(answer: ChatMessage) -> ChatMessage:
    return msgspec.structs.replace(
        answer,
        content=encodable_text(answer.content),
        tool_calls=encodable(answer.tool_calls),
        extra_args=encodable(answer.extra_args),
        parts=[_part(part) for part in answer.parts],
        reasoning=[
            msgspec.structs.replace(part, text=encodable_text(part.text), opaque=encodable(part.opaque))
            for part in answer.reasoning
        ],
        finish_reason=encodable_text(answer.finish_reason),
    )


def _part(part: Part) -> Part:
    return TextPart(encodable_text(part.text), part.cache) if isinstance(part, TextPart) else part
