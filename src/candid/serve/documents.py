"""The OpenAPI document: what each route takes, gives and refuses, with examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from candid.serve import schemas
from candid.serve.examples import REQUESTS, RESPONSES
from candid.serve.problems import responses

ALWAYS = ("internal", "overloaded", "too_many_requests")
WITH_KEY = ("no_key", "wrong_key")
WITH_BODY = (
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
WITH_PARAMETERS = ("invalid", "timeout")
DESCRIPTION = """\
Recommendations from a trained retrieval model.

Ids are the data's own. Every error has the form `{"error": {"code", "message", "field"}}`, and
`Retry-After` says when trying again may help.
"""


def described(request: str | None, response: str, *codes: str) -> dict[str, Any]:
    """What a route says of itself in the document: arguments for its decorator.

    Args:
        request: schema of the body; None: there is none.
        response: schema of the answer.
        codes: of errors, beside those that all such routes may have.
    """
    more = ("reload_failed", "reload_running") if "reload" in codes else ()
    is_probe = response == "Health"
    own: tuple[str, ...] = ()
    if not is_probe:
        own = (*WITH_KEY, *(WITH_PARAMETERS if request is None else WITH_BODY))
    listed: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "OK",
            "content": {
                "application/json": {"schema": _reference(response), "example": RESPONSES[response]}
            },
        },
        **responses(*ALWAYS, *own, *more, *codes),
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
    return {"response_model": None, "responses": listed, "openapi_extra": extra}


def document(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
        )
        names = ["Failure", *REQUESTS, *RESPONSES]
        kinds = [(getattr(schemas, name), "validation") for name in names]
        _, definitions = models_json_schema(
            kinds,  # type: ignore[arg-type]
            ref_template="#/components/schemas/{model}",
        )
        components = made.setdefault("components", {})
        components["schemas"] = definitions["$defs"]
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path in made["paths"].values():
            for route in path.values():
                _without_default_error(route["responses"])
        app.openapi_schema = made
    return app.openapi_schema


def _without_default_error(listed: dict[str, Any]) -> None:
    """Take out what FastAPI would say of wrong parameters: ours are of another form."""
    content = listed.get("200", {}).get("content", {}).get("application/json", {})
    # A bare Response has no schema of its own; FastAPI writes an empty one beside ours.
    content.setdefault("schema", {})


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
