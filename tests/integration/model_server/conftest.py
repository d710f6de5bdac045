from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

from agentflow.testing.model_server import Fault, Hung, ModelServer, Stalled

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="  # an image, 1 × 1

Serve = Callable[..., Coroutine[Any, Any, ModelServer]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers, and close them in the end."""
    async with AsyncExitStack() as stack:

        async def start(answer: Any = None, **options: Any) -> ModelServer:
            return await stack.enter_async_context(ModelServer(answer, **options))

        yield start


@pytest.fixture
def patience() -> Callable[[Fault], float]:
    """Say how many seconds a client waits: long for what comes in any case, however busy the machine is."""
    return lambda fault: 0.7 if isinstance(fault, Hung | Stalled) else 20


@pytest.fixture
def schema() -> dict[str, Any]:
    return SCHEMA


@pytest.fixture
def pixel() -> str:
    return PIXEL
