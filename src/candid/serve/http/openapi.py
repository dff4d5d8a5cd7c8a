"""The OpenAPI document: body, answer and errors of each route, with examples."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from candid.serve.http import schemas
from candid.serve.http.errors import responses
from candid.serve.http.examples import REQUESTS, RESPONSES

COMMON_ERRORS: Final = (
    "internal",
    "overloaded",
    "too_many_requests",
    "wrong_host",
    "slow_head",
    "head_too_large",
)
KEY_ERRORS: Final = ("no_key", "wrong_key")
BODY_ERRORS: Final = (
    "bad_json",
    "bad_request",
    "slow_body",
    "too_large",
    "bad_type",
    "invalid",
    "unknown_item",
    "unsupported",
    "timeout",
)
PARAMETER_ERRORS: Final = ("invalid", "timeout")
DESCRIPTION: Final = """\
Recommendations from a trained retrieval model.

Ids are the source ids of the data. Every error has the form
`{"error": {"code", "message", "field"}}`; `Retry-After` is set where a retry may help.
"""


def document_route(request: str | None, response: str, *codes: str) -> dict[str, Any]:
    """Return the arguments of a route's decorator that describe it in the document.

    Args:
        request: name of the schema of the body; None: the route has no body.
        response: name of the schema of the answer.
        codes: error codes in addition to those of all such routes.
    """
    is_probe = response == "Health"
    common: tuple[str, ...] = ()
    if not is_probe:
        common = (*KEY_ERRORS, *(PARAMETER_ERRORS if request is None else BODY_ERRORS))
    documented: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "OK",
            "content": {
                "application/json": {"schema": _reference(response), "example": RESPONSES[response]}
            },
        },
        **responses(*COMMON_ERRORS, *common, *codes),
    }
    extra: dict[str, Any] = {}
    if request is not None:
        examples = {name: {"value": value} for name, value in REQUESTS[request].items()}
        extra["requestBody"] = {
            "required": request != "ReloadRequest",
            "content": {"application/json": {"schema": _reference(request), "examples": examples}},
        }
    if not is_probe:
        extra["security"] = [{"bearer": []}, {"key": []}, {}]
    return {"response_model": None, "responses": documented, "openapi_extra": extra}


def build_document(app: FastAPI) -> dict[str, Any]:
    """Return the document of an application; it is built once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
        )
        names = ["Failure", *REQUESTS, *RESPONSES]
        models = [(getattr(schemas, name), "validation") for name in names]
        _, definitions = models_json_schema(
            models,  # type: ignore[arg-type]
            ref_template="#/components/schemas/{model}",
        )
        components = document.setdefault("components", {})
        components["schemas"] = definitions["$defs"]
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path in document["paths"].values():
            for route in path.values():
                # FastAPI writes no schema for a bare Response.
                content = route["responses"].get("200", {}).get("content", {})
                content.get("application/json", {}).setdefault("schema", {})
        app.openapi_schema = document
    return app.openapi_schema


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
