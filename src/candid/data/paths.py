"""Paths in a config: one, or a list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic

from candid.data.urls import without_secrets


class Paths(tuple[str, ...]):
    """Several paths; as text the first one and the number of the others."""

    __slots__ = ()

    def __str__(self) -> str:
        first = without_secrets(self[0])
        return first if len(self) == 1 else f"{first} and {len(self) - 1} more"


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


def shown(value: str | tuple[str, ...]) -> str:
    """Return what messages call paths: a path, or the first one and the number of the others."""
    return without_secrets(value) if isinstance(value, str) else str(Paths(value))


def _without_secrets(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return without_secrets(value)
    return tuple(without_secrets(path) for path in value)


Locations = Annotated[
    str | tuple[str, ...],
    pydantic.BeforeValidator(_plain),
    pydantic.AfterValidator(_listed),
    # Manifests and runs store the config.
    pydantic.PlainSerializer(_without_secrets),
]
"""A path of a file or folder, a glob pattern, or a list of these."""
