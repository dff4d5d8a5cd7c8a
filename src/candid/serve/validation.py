"""Checks of a request that do not depend on the model."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from typing import Any

from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError, short_repr
from candid.serve.requests import RecommendRequest, SimilarRequest, is_finite


def check_limits(request: RecommendRequest | SimilarRequest, config: ServeConfig) -> None:
    """Check k, the lists and the filters against the limits of the server.

    Raises:
        RequestError: one of them is larger than its limit.
    """
    limits = {
        "k": (request.k, config.max_k),
        "allow": (len(request.allow or ()), config.max_list),
        "deny": (len(request.deny), config.max_list),
        "filters": (len(request.filters), config.max_filters),
    }
    for field, (number, limit) in limits.items():
        if number > limit:
            raise RequestError("invalid", f"at most {limit}, not {short_repr(number)}", field)
    for name, values in request.filters.items():
        if isinstance(values, list) and len(values) > config.max_list:
            raise RequestError(
                "invalid", f"at most {config.max_list} values", f"filters.{name}"[:100]
            )


def check_attributes(
    attributes: Mapping[str, Any], known: Collection[str], owner: str, field: str
) -> None:
    """Check that attributes have known names and finite values.

    Args:
        attributes: by name, from the request.
        known: names that exist.
        owner: "users" or "items", for the message.
        field: of the request, for the message.

    Raises:
        RequestError: an unknown name, or a number that is too large for float32.
    """
    for name, value in attributes.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise RequestError(
                "invalid",
                f"{owner} have no attribute {short_repr(name)}; they have: {names}",
                f"{field}.{name}"[:100],
            )
        if not is_finite(value):
            raise RequestError("invalid", "the number is too large for float32", f"{field}.{name}")


def to_microseconds(time: datetime.datetime) -> int:
    """Convert a time to microseconds since 1970-01-01 UTC."""
    return round(time.timestamp() * 1_000_000)
