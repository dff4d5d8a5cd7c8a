"""What a request may ask, whichever model it asks."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from typing import Any

from candid.serve.config import ServeConfig
from candid.serve.problems import Problem, shown
from candid.serve.schemas import RecommendRequest, SimilarRequest, is_finite


def check_choice(request: RecommendRequest | SimilarRequest, config: ServeConfig) -> None:
    """Refuse what is beyond a limit.

    Raises:
        Problem: k, a list or the filters are.
    """
    limits = {
        "k": (request.k, config.max_k),
        "allow": (len(request.allow or ()), config.max_list),
        "deny": (len(request.deny), config.max_list),
        "filters": (len(request.filters), config.max_filters),
    }
    for field, (number, most) in limits.items():
        if number > most:
            raise Problem("invalid", f"at most {most}, not {shown(number)}", field)
    for name, wanted in request.filters.items():
        if isinstance(wanted, list) and len(wanted) > config.max_list:
            raise Problem("invalid", f"at most {config.max_list} values", f"filters.{name}"[:100])


def check_attributes(
    attributes: Mapping[str, Any], known: Collection[str], kind: str, field: str
) -> None:
    """Refuse names that nobody knows and numbers that no model can read.

    Raises:
        Problem: there are such.
    """
    for name, value in attributes.items():
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise Problem(
                "invalid",
                f"{kind} have no attribute {shown(name)}; they have: {listed}",
                f"{field}.{name}"[:100],
            )
        if not is_finite(value):
            raise Problem("invalid", "a number beyond float32", f"{field}.{name}")


def microseconds(moment: datetime.datetime) -> int:
    """Since 1970-01-01 UTC."""
    return round(moment.timestamp() * 1_000_000)
