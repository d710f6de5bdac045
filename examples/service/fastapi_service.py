"""A FastAPI service with an engine inside.

    STATE_DIR=./state uvicorn examples.service.fastapi_service:app

    curl -X POST localhost:8000/customers/ann/questions -H 'Idempotency-Key: q-1' -d '{"text": "Where is my parcel?"}' -H 'Content-Type: application/json'
    curl -N -X POST localhost:8000/customers/ann/questions/stream -d '{"text": "And when?"}' -H 'Content-Type: application/json'

The endpoints are the service's own; below ``/agents`` are those of `agentflow.integrations.asgi`, for other services.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from agentflow import Engine, EngineClosed, EngineOverloaded, RequestMismatch, RunFailed
from agentflow.integrations.asgi import engine_app
from examples.service.support_agent import SupportAgent

engine = Engine(SupportAgent(), state_dir=os.environ.get("STATE_DIR", "./state/support"), on_overload="raise")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the engine as long as the service."""
    async with engine:
        yield


app = FastAPI(title="support", lifespan=lifespan)
app.mount("/agents", engine_app(engine, title="support agents"))


class Question(BaseModel):
    """A question of a customer."""

    text: str


@app.post("/customers/{customer}/questions")
async def ask(
    customer: str, question: Question, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """Answer a question; the same Idempotency-Key gets the same answer, and makes no second call of the model."""
    try:
        outputs = await engine.submit(customer, question.model_dump(), request_id=idempotency_key, timeout="30s")
    except (EngineOverloaded, EngineClosed) as error:
        raise HTTPException(503, error.what, {"Retry-After": "1"}) from error
    except RequestMismatch as error:
        raise HTTPException(409, error.what) from error
    except RunFailed as error:
        raise HTTPException(502, error.what) from error
    answer: dict[str, Any] = outputs[-1]
    return answer


@app.post("/customers/{customer}/questions/stream")
async def ask_and_follow(customer: str, question: Question) -> StreamingResponse:
    """Answer a question with server-sent events, one for each output as it comes."""

    async def events() -> AsyncIterator[str]:
        async for output in engine.stream(customer, question.model_dump()):
            yield f"data: {json.dumps(output)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/customers/{customer}/history")
async def history(customer: str) -> list[list[str]]:
    """Return what the agent remembers of a customer."""
    known: list[list[str]] = engine.memory(customer).get("history", [])
    return known
