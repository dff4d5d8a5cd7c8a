"""What a feature is: a column, what was learnt of it from training rows, and its encoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from candid.component import ComponentConfig
from candid.features.values import Values


class Feature(ABC):
    """A fitted feature: the same column always becomes the same values.

    Everything it learnt (a vocabulary, a mean, quantiles) is in ``state``, which is stored
    with the model: serving reads that, never the data again.
    """

    @abstractmethod
    def encode(self, column: pl.Series) -> Values:
        """Encode n values, known or not; null is a value of its own or unknown.

        Raises:
            DataError: the column's type, or a value, cannot be of this feature.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What was learnt, as plain JSON values; ``FeatureConfig.restore`` undoes it."""


class FeatureConfig(ComponentConfig, ABC):
    """Base of every feature's nested ``Config``."""

    column: str | None = Field(
        None, description="column of the table; absent: the name of the feature"
    )
    pattern: str | None = Field(
        None,
        description="regular expression for a column of text: the value is what its first group "
        "matches, as in '\\((\\d{4})\\)$' for the year at the end of a title; missing where it "
        "matches nothing",
    )

    @field_validator("pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            # By the engine that will read it, which is not Python's own.
            groups = pl.Series([""]).str.extract_groups(pattern).struct.fields
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{pattern!r} is not a regular expression: {reason}") from None
        if not groups:
            raise ValueError(f"{pattern!r} has no group: put what is wanted in parentheses")
        return pattern

    @abstractmethod
    def fit(self, column: pl.Series) -> Feature:
        """Learn from the rows that are trained on.

        Raises:
            DataError: the column's type, or a value, cannot be of this feature.
        """

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> Feature:
        """Make the feature that ``Feature.state`` described.

        Raises:
            KeyError, TypeError, ValueError: it is not such a state.
        """
