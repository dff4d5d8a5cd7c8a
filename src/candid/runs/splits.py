"""Splits of an evaluation by name."""

from __future__ import annotations

from collections.abc import Mapping

from candid.data import Role
from candid.errors import ConfigError

SPLITS: Mapping[str, Role] = {"validation": Role.VALIDATION, "test": Role.TEST}
"""Splits that a model is measured on, by name."""


def role_of(split: str) -> Role:
    """Return the role of the targets of a split.

    Raises:
        ConfigError: there is no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}: use one of {', '.join(sorted(SPLITS))}")
    return SPLITS[split]
