"""Validation errors of a body as the error of the request, with the first wrong field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pydantic

from candid.serve.errors import RequestError, truncate

MAX_ERRORS: Final = 100
"""A body with more validation errors gets their number only: formatting all would take too long."""
UNION_BRANCHES: Final = frozenset(
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
"""Parts of a pydantic error location that name a branch of a union, not a field."""


def from_validation(error: pydantic.ValidationError) -> RequestError:
    """Convert a pydantic error; only its first field is reported."""
    if error.error_count() > MAX_ERRORS:
        return RequestError("invalid", f"the body has {error.error_count()} errors")
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return RequestError("bad_json", truncate(first["msg"]))
    field = _field(first["loc"])
    # pydantic reports a value that fits no branch of a union once for each branch.
    same_field = [e for e in errors if (_field(e["loc"]) or "").startswith(field or "")]
    deepest = max(same_field, key=lambda e: len(_field_parts(e["loc"])))
    if len(_field_parts(deepest["loc"])) > len(_field_parts(first["loc"])):
        same_field = [deepest]
    messages = dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in same_field)
    return RequestError("invalid", truncate("; or: ".join(messages)), _field(same_field[0]["loc"]))


def _field(location: Sequence[Any]) -> str | None:
    return truncate(".".join(_field_parts(location)), 100) or None


def _field_parts(location: Sequence[Any]) -> list[str]:
    return [str(part) for part in location if not _is_union_branch(part)]


def _is_union_branch(part: Any) -> bool:
    return isinstance(part, str) and (part in UNION_BRANCHES or "[" in part)
