"""The OpenAPI document of the endpoints of `agentflow.integrations.asgi`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

_KEY = {"description": "The key: runs of a key take turns.", "type": ["string", "number", "boolean"]}
_EVENTS = (
    "Events: output (id: its place), then end or error; at the timeout error, of the type TimeoutError. With tokens also token, reset, gap "
    "and step-end between them."
)
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "fix": {"type": "string", "description": "What to do."},
                "run_id": {"type": "string"},
                "error_type": {"type": "string", "description": "Of a run that failed: class of its error."},
                "error_message": {"type": "string"},
                "outputs": {"type": "array", "description": "What a run that failed had sent before.", "items": {}},
            },
        }
    },
}


def openapi_document(title: str, place: str, plans: Iterable[Any]) -> dict[str, Any]:
    """Return the document (OpenAPI 3.1).

    Args:
        title: Its title.
        place: Path that the endpoints are mounted at.
        plans: Plans of the engine's agents: their names, and the types that their actions declare for inputs.
    """
    named = {plan.name: plan for plan in plans}
    inputs, schemas = _inputs(named.values())
    schemas["Error"] = _ERROR
    schemas["Input"] = {
        "type": "object",
        "required": ["key"],
        "additionalProperties": False,
        "properties": {
            "key": _KEY,
            "value": {"description": "The input of the agent.", **inputs},
            "request_id": {
                "type": ["string", "null"],
                "minLength": 1,
                "maxLength": 500,
                "description": "The same id joins the first request, or gets its answer; also as header Idempotency-Key.",
            },
            "agent": {
                "type": ["string", "null"],
                "enum": [*named, None],
                "description": "Needed where there are several.",
            },
            "timeout": {
                "type": ["string", "number", "null"],
                "description": "Longest wait, seconds or with a unit: for the end of the run, or, of /send, for its acceptance. The run goes on.",
                "examples": ["5s"],
            },
        },
    }
    schemas["Followed"] = {
        **schemas["Input"],
        "properties": {
            **schemas["Input"]["properties"],
            "tokens": {"type": "boolean", "description": "Stream also what actions say while they work."},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "servers": [{"url": place}],
        "paths": _paths(),
        "components": {"schemas": schemas},
    }


def _inputs(plans: Iterable[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of inputs: those that actions declare, or any; and the schemas that it refers to."""
    found: list[dict[str, Any]] = []
    schemas: dict[str, Any] = {}
    for plan in plans:
        types = {action.input_type for action in plan.actions if "_input_event" in action.trigger_types}
        for kind in types or {None}:
            described = getattr(kind, "model_json_schema", None)
            if kind is None:
                return {}, {}
            if described is not None:
                found.append(described(ref_template="#/components/schemas/{model}"))
                schemas |= found[-1].pop("$defs", {})
            else:
                (schema,), components = msgspec.json.schema_components(
                    [kind], ref_template="#/components/schemas/{name}"
                )
                found.append(schema)
                schemas |= components
    return (found[0] if len(found) == 1 else {"anyOf": found}), schemas


def _paths() -> dict[str, Any]:
    error = {"description": "See `type`.", "content": _content({"$ref": "#/components/schemas/Error"})}
    refusals = {str(status): error for status in (400, 409, 413, 422, 500, 503)}
    body = {"required": True, "content": _content({"$ref": "#/components/schemas/Input"})}
    outputs = {"type": "object", "properties": {"outputs": {"type": "array", "items": {}}}}
    states = {"enum": ["done", "failed", "unfinished"]}
    run = {"type": "object", "properties": {"run_id": {"type": "string"}, "state": states}}
    signal = {"key": _KEY, "name": {"type": "string"}, "value": {}, "correlation": {"type": "string"}}
    aimed = {"run": {"type": "string"}, "agent": {"type": "string"}}
    accepted = {"202": {"description": "Accepted, durably."}, **refusals}
    run_id = {"name": "run_id", "in": "path", "required": True, "schema": {"type": "string"}}
    wait_id = {"name": "wait_id", "in": "path", "required": True, "schema": {"type": "string"}}
    verdict = {"reason": {"type": "string"}, "by": {"type": ["string", "null"], "description": "Who says so."}}
    answered = {**accepted, "404": error}
    wait = {"name": "wait", "in": "query", "schema": {"type": "string"}, "description": "Wait so long for the end: 5s."}
    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 10_000}}

    def post(
        summary: str, request: dict[str, Any], responses: dict[str, Any], *parameters: dict[str, Any]
    ) -> dict[str, Any]:
        described = {"summary": summary, "requestBody": request, "responses": responses}
        return {"post": {**described, "parameters": list(parameters)} if parameters else described}

    def get(summary: str, kind: dict[str, Any], *parameters: dict[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401
        answers = {"200": {"description": "OK", "content": _content(kind)}, **more}
        return {"get": {"summary": summary, "parameters": list(parameters), "responses": answers}}

    return {
        "/submit": post(
            "Run an agent and return its outputs",
            body,
            {"200": {"description": "The outputs, in order.", "content": _content(outputs)}, "504": error, **refusals},
        ),
        "/stream": post(
            "Run an agent and stream its outputs",
            {"required": True, "content": _content({"$ref": "#/components/schemas/Followed"})},
            {
                "200": {"description": _EVENTS, "content": {"text/event-stream": {"schema": {"type": "string"}}}},
                **refusals,
            },
        ),
        "/send": post(
            "Accept an input durably",
            body,
            {"202": {"description": "The run has been accepted.", "content": _content(run)}, "504": error, **refusals},
        ),
        "/runs": get("Unfinished runs", {"type": "object"}, limit),
        "/runs/{run_id}": get(
            "A run", run, run_id, wait, **{"202": {"description": "It is unfinished."}, "404": error}
        ),
        "/signal": post("Signal to a run that waits", _object_body({**signal, **aimed}, "key", "name"), accepted),
        "/cancel": post(
            "Cancel a run", _object_body({"key": _KEY, "reason": {"type": "string"}, **aimed}, "key"), accepted
        ),
        "/inbox": get("Who waits for a signal", {"type": "object"}, limit),
        "/inbox/{wait_id}/approve": post(
            "Approve a call", _object_body({**verdict, "arguments": {"type": ["object", "null"]}}), answered, wait_id
        ),
        "/inbox/{wait_id}/deny": post("Deny a call", _object_body(verdict), answered, wait_id),
        "/stats": get("What the engine does", {"type": "object"}),
    }


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object_body(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    schema = {"type": "object", "required": list(required), "additionalProperties": False, "properties": properties}
    return {"required": True, "content": _content(schema)}
