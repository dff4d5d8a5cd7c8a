"""Errors over HTTP: status of each code, and the one body ``{"error": {code, message, field}}``.

Needs no other library, so that the process of the probes stays small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from candid.serve.errors import RequestError

STATUS: Final[Mapping[str, int]] = {
    "bad_json": 400,
    "bad_request": 400,
    "no_key": 401,
    "wrong_key": 403,
    "needs_key": 403,
    "not_found": 404,
    "bad_method": 405,
    "slow_body": 408,
    "slow_head": 408,
    "reload_failed": 409,
    "reload_running": 409,
    "too_large": 413,
    "bad_type": 415,
    "wrong_host": 421,
    "invalid": 422,
    "unknown_item": 422,
    "unknown_user": 422,
    "unsupported": 422,
    "too_many_requests": 429,
    "head_too_large": 431,
    "internal": 500,
    "overloaded": 503,
    "timeout": 503,
    "not_ready": 503,
    "not_stored": 507,
}
"""HTTP status of each error code."""
CLOSING_CODES: Final = frozenset({"too_large", "slow_body"})
"""Errors after which the rest of the body is not read and the connection is closed."""


def status_of(error: RequestError) -> int:
    """Return the HTTP status of an error."""
    return STATUS[error.code]


def body_of(error: RequestError) -> bytes:
    """Return the JSON body of an error."""
    content = {"code": error.code, "message": error.message, "field": error.field}
    return json.dumps({"error": content}, ensure_ascii=False, separators=(",", ":")).encode()


def headers_of(error: RequestError) -> dict[str, str]:
    """Return the HTTP headers of an error."""
    headers = {"content-type": "application/json"}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.code in CLOSING_CODES:
        headers["connection"] = "close"
    if error.code == "no_key":
        headers["www-authenticate"] = "Bearer"
    return headers


@dataclass(frozen=True)
class ErrorExample:
    """One error in the OpenAPI document.

    Attributes:
        code: a key of ``STATUS``.
        message: an example.
        field: an example.
    """

    code: str
    message: str
    field: str | None = None


EXAMPLES: Final[tuple[ErrorExample, ...]] = (
    ErrorExample("bad_json", "Invalid JSON: expected value at line 1 column 1"),
    ErrorExample("bad_request", "the body ended before its content-length"),
    ErrorExample("no_key", "this server needs a key; send it as Authorization: Bearer KEY"),
    ErrorExample("wrong_key", "the server does not accept this key for this request"),
    ErrorExample(
        "needs_key", "item updates and reloads need a server that was started with an admin key"
    ),
    ErrorExample("not_found", "no item '9999' in model 'ml1m'", "id"),
    ErrorExample("bad_method", "this address does not support DELETE"),
    ErrorExample("slow_body", "the body took longer than 5000 ms to arrive"),
    ErrorExample("slow_head", "the head of the request took longer than 10000 ms"),
    ErrorExample("reload_failed", "runs/ml1m/best.safetensors is damaged; train again"),
    ErrorExample(
        "reload_running", "a reload is running and one of another model is waiting; try again later"
    ),
    ErrorExample("too_large", "the body is larger than 1000000 bytes"),
    ErrorExample("bad_type", "send application/json"),
    ErrorExample("wrong_host", "this server does not answer under this host name"),
    ErrorExample("invalid", "Input should be less than or equal to 1000", "k"),
    ErrorExample("unknown_item", "no item '9999' in model 'ml1m'", "history.2"),
    ErrorExample("unknown_user", "no user '9999' in model 'ml1m'", "user"),
    ErrorExample("unsupported", "the model of this run reads no attributes of users", "attributes"),
    ErrorExample("too_many_requests", "more than 50 requests per second; try again later"),
    ErrorExample("head_too_large", "the head of a request has at most 65536 bytes"),
    ErrorExample("internal", "the server failed; the log of the server has the details"),
    ErrorExample("overloaded", "1024 queries are waiting; try again later"),
    ErrorExample("timeout", "no answer within 1000 ms; try again later"),
    ErrorExample("not_ready", "the server is shutting down"),
    ErrorExample(
        "not_stored",
        "the update could not be stored (No space left on device), so nothing has changed; send it "
        "again later",
    ),
)


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI ``responses`` of a route that may fail with these codes."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for example in EXAMPLES:
        if example.code not in codes:
            continue
        status = STATUS[example.code]
        entry = by_status.setdefault(
            status,
            {
                "description": "",
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/Failure"},
                        "examples": {},
                    }
                },
            },
        )
        entry["description"] = ", ".join(filter(None, (entry["description"], example.code)))
        if status in (429, 503, 507):
            entry["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}
            }
        value = {"code": example.code, "message": example.message, "field": example.field}
        entry["content"]["application/json"]["examples"][example.code] = {"value": {"error": value}}
    return by_status
