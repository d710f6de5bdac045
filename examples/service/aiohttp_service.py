"""An aiohttp service with an engine inside.

STATE_DIR=./state python -m examples.service.aiohttp_service 8080
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web

from agentflow import Engine, EngineClosed, EngineOverloaded, RunFailed
from examples.service.support_agent import SupportAgent

ENGINE = web.AppKey("engine", Engine)


async def run_engine(app: web.Application) -> AsyncIterator[None]:
    """Run the engine as long as the service."""
    async with Engine(SupportAgent(), state_dir=os.environ.get("STATE_DIR", "./state/support")) as engine:
        app[ENGINE] = engine
        yield


async def ask(request: web.Request) -> web.Response:
    """Answer a question; the same Idempotency-Key gets the same answer."""
    customer, question = request.match_info["customer"], await request.json()
    try:
        outputs = await request.app[ENGINE].submit(
            customer, question, request_id=request.headers.get("Idempotency-Key"), timeout="30s"
        )
    except (EngineOverloaded, EngineClosed) as error:
        return web.json_response({"error": error.what}, status=503, headers={"Retry-After": "1"})
    except RunFailed as error:
        return web.json_response({"error": error.what}, status=422 if error.error_type == "DecodeError" else 502)
    return web.json_response(outputs[-1])


def application() -> web.Application:
    """Return the service."""
    app = web.Application()
    app.cleanup_ctx.append(run_engine)
    app.router.add_post("/customers/{customer}/questions", ask)
    return app


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]))
