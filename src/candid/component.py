"""What every configurable part shares: a frozen config class and lookup by name.

A part (a tower, a proposal, a loss, an index) owns a nested ``Config``; its package's
``__init__`` holds the registry, a literal dict from the name used in recipes to the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import pydantic

from candid.errors import UnknownNameError

T = TypeVar("T")


class ComponentConfig(pydantic.BaseModel):
    """Base of every config: frozen, typed, unknown keys refused.

    Each field carries a ``description`` (shown by ``candid train --help``) and, wherever
    that makes sense, a default.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def lookup(registry: Mapping[str, T], kind: str, name: str) -> T:
    """Return ``registry[name]``.

    Raises:
        UnknownNameError: no such name; the message lists the known ones.
    """
    try:
        return registry[name]
    except KeyError:
        raise UnknownNameError(kind, name, registry) from None
