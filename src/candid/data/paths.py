"""Paths in a config: one, or a list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic


class Paths(tuple[str, ...]):
    """Several paths; as text the first one and the number of the others."""

    __slots__ = ()

    def __str__(self) -> str:
        return self[0] if len(self) == 1 else f"{self[0]} and {len(self) - 1} more"


def _plain(value: object) -> object:
    """Return paths as text."""
    if isinstance(value, str | Path):
        return str(value)
    if not isinstance(value, list | tuple) or not all(isinstance(v, str | Path) for v in value):
        raise ValueError(f"must be a path or a list of paths, got {value!r}")
    if not value:
        raise ValueError("the list of paths is empty; name at least one")
    return tuple(str(path) for path in value)


def _listed(value: str | tuple[str, ...]) -> str | Paths:
    return value if isinstance(value, str) else Paths(value)


Locations = Annotated[
    str | tuple[str, ...],
    pydantic.BeforeValidator(_plain),
    pydantic.AfterValidator(_listed),
]
"""A path of a file or folder, a glob pattern, or a list of these."""
