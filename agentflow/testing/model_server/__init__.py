"""A local server that speaks the protocols of model providers, for tests and benchmarks (extra ``http``).

In the process of a test: `ModelServer`. As a process of its own, which outlives an engine that is killed:

    python -m agentflow.testing.model_server --port 0 --latency 50ms [--script FILE.py:function | --replies FILE.json]

It prints its URL first; ``GET /_server/requests``, ``GET /_server/counts`` and ``POST /_server/reset`` are its oracle.
"""

from __future__ import annotations

from agentflow.testing.model_server.embeddings import embedding
from agentflow.testing.model_server.request import Message, ModelRequest, Part, Tool
from agentflow.testing.model_server.script import (
    Answer,
    ContextTooLong,
    Cut,
    Dropped,
    Fault,
    HttpError,
    Hung,
    MalformedBody,
    Reply,
    Stalled,
    StreamFailed,
    ToolCall,
    Unauthorized,
    Usage,
)
from agentflow.testing.model_server.server import ModelServer

__all__ = [
    "Answer",
    "ContextTooLong",
    "Cut",
    "Dropped",
    "Fault",
    "HttpError",
    "Hung",
    "MalformedBody",
    "Message",
    "ModelRequest",
    "ModelServer",
    "Part",
    "Reply",
    "Stalled",
    "StreamFailed",
    "Tool",
    "ToolCall",
    "Unauthorized",
    "Usage",
    "embedding",
]
