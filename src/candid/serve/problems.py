"""Every error that a client can meet, in one form: ``{"error": {code, message, field}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic_core import to_json

STATUS: Mapping[str, int] = {
    "bad_json": 400,
    "bad_request": 400,
    "no_key": 401,
    "wrong_key": 403,
    "needs_key": 403,
    "not_found": 404,
    "bad_method": 405,
    "slow_body": 408,
    "reload_failed": 409,
    "reload_running": 409,
    "too_large": 413,
    "bad_type": 415,
    "invalid": 422,
    "unknown_item": 422,
    "unknown_user": 422,
    "unsupported": 422,
    "too_many_requests": 429,
    "internal": 500,
    "overloaded": 503,
    "timeout": 503,
    "not_ready": 503,
}
"""HTTP status of each code."""
MOST_ERRORS = 100
"""Beyond so many, what exactly is wrong with a body is not worth the time of telling."""
SHOWN = 200
"""Characters of a message that come from the request, at most."""


class Problem(Exception):
    """What is wrong with a request, or why it cannot be answered now.

    Args:
        code: a key of ``STATUS``.
        message: one sentence.
        field: where in the request, as ``queries.3.k``; None where it is no one place.
        retry_after: seconds after which to try again; None: trying again changes nothing.
    """

    def __init__(
        self, code: str, message: str, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]

    def within(self, place: str) -> Problem:
        """The same problem, in one part of a request."""
        field = place if self.field is None else f"{place}.{self.field}"
        return Problem(self.code, self.message, field, self.retry_after)

    def body(self) -> bytes:
        """The JSON document."""
        return to_json({"error": {"code": self.code, "message": self.message, "field": self.field}})

    def headers(self) -> dict[str, str]:
        """The HTTP headers that go with it."""
        headers = {"content-type": "application/json"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.code == "no_key":
            headers["www-authenticate"] = "Bearer"
        return headers


def from_validation(error: pydantic.ValidationError) -> Problem:
    """The first thing that pydantic found wrong."""
    if error.error_count() > MOST_ERRORS:
        return Problem("invalid", f"{error.error_count()} things are wrong with the body")
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return Problem("bad_json", _short(first["msg"]))
    place = _place(first["loc"])
    # One value that fits no branch of a union is told once a branch.
    same = [found for found in errors if (_place(found["loc"]) or "").startswith(place or "")]
    deepest = max(same, key=lambda found: len(_parts(found["loc"])))
    if len(_parts(deepest["loc"])) > len(_parts(first["loc"])):
        same = [deepest]
    messages = dict.fromkeys(found["msg"].removeprefix("Value error, ") for found in same)
    return Problem("invalid", _short("; or: ".join(messages)), _place(same[0]["loc"]))


def shown(value: object) -> str:
    """A value of a request, cut to what a message has room for."""
    return _short(repr(value), 60)


def _place(location: Sequence[Any]) -> str | None:
    return _short(".".join(_parts(location)), 100) or None


def _parts(location: Sequence[Any]) -> list[str]:
    return [str(part) for part in location if not _is_branch(part)]


def _is_branch(part: Any) -> bool:
    """Whether a part of a location names a branch of a union rather than a field."""
    return isinstance(part, str) and (part in BRANCHES or "[" in part)


BRANCHES = frozenset(
    {
        "str",
        "constrained-str",
        "int",
        "float",
        "bool",
        "list",
        "constrained-list",
        "Event",
        "Bounds",
    }
)


def _short(text: str, most: int = SHOWN) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


@dataclass(frozen=True)
class Documented:
    """One error in the words of the OpenAPI document.

    Attributes:
        code: a key of ``STATUS``.
        message: an example.
        field: an example.
    """

    code: str
    message: str
    field: str | None = None


EXAMPLES: tuple[Documented, ...] = (
    Documented("bad_json", "Invalid JSON: expected value at line 1 column 1"),
    Documented("bad_request", "the body ended before its content-length"),
    Documented("no_key", "this server needs a key: send it as Authorization: Bearer KEY"),
    Documented("wrong_key", "this key is not one of the server's"),
    Documented("needs_key", "changing items needs a server that was started with an admin key"),
    Documented("not_found", "no item '9999' in model 'ml1m'", "id"),
    Documented("bad_method", "this address knows no DELETE"),
    Documented("slow_body", "the body took longer than 5000 ms to arrive"),
    Documented("reload_failed", "runs/ml1m/best.safetensors is damaged; train again"),
    Documented("reload_running", "a reload is running: wait for it"),
    Documented("too_large", "the body is larger than 1000000 bytes"),
    Documented("bad_type", "send application/json"),
    Documented("invalid", "Input should be less than or equal to 1000", "k"),
    Documented("unknown_item", "no item '9999' in model 'ml1m'", "history.2"),
    Documented("unknown_user", "no user '9999' in model 'ml1m'", "user"),
    Documented("unsupported", "the model of this run reads no features of users", "features"),
    Documented("too_many_requests", "more than 50 requests a second: wait a moment"),
    Documented("internal", "the server failed; its log says where"),
    Documented("overloaded", "1024 queries are waiting: try again in a moment"),
    Documented("timeout", "no answer within 1000 ms: try again in a moment"),
    Documented("not_ready", "the server is shutting down"),
)


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI ``responses`` of a route that may fail with these codes."""
    found: dict[int | str, dict[str, Any]] = {}
    for example in EXAMPLES:
        if example.code not in codes:
            continue
        status = STATUS[example.code]
        entry = found.setdefault(
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
        if status in (429, 503):
            entry["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}
            }
        value = {"code": example.code, "message": example.message, "field": example.field}
        entry["content"]["application/json"]["examples"][example.code] = {"value": {"error": value}}
    return found
