"""The base classes of features: a column, the state fitted on training rows, the encoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from candid.component import ComponentConfig
from candid.features.values import Values


class Feature(ABC):
    """A fitted feature: the same column always becomes the same values.

    The fitted state (a vocabulary, a mean, quantiles) is stored with the model. Serving reads
    that state and never fits again.
    """

    @abstractmethod
    def encode(self, column: pl.Series) -> Values:
        """Encode n values, known or unknown; null is a separate value or unknown.

        Raises:
            DataError: the feature does not support the type of the column, or a value.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values; ``FeatureConfig.restore`` reads it."""


class FeatureConfig(ComponentConfig, ABC):
    """Base of the nested ``Config`` of every feature."""

    column: str | None = Field(
        None, description="column of the table; none: the name of the feature"
    )
    pattern: str | None = Field(
        None,
        description="regular expression for a column of text: the match of its first group is "
        "the value, as in '\\((\\d{4})\\)$' for the year at the end of a title; without a match "
        "the value is missing",
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            # Polars evaluates the pattern later, and its engine differs from that of Python.
            groups = pl.Series([""]).str.extract_groups(pattern).struct.fields
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{pattern!r} is not a regular expression: {reason}") from None
        if not groups:
            raise ValueError(f"{pattern!r} has no group; put the value in parentheses")
        return pattern

    @abstractmethod
    def fit(self, column: pl.Series) -> Feature:
        """Fit the feature on the values of training rows.

        Raises:
            DataError: the feature does not support the type of the column, or a value.
        """

    def extend(self, feature: Any, column: pl.Series) -> Feature:
        """Return the feature with the values that training rows have since, for a warm start.

        Earlier values keep their codes and new ones follow, so that the rows of a table stay. A
        feature without a vocabulary stays as it is: weights depend on its scale.

        Args:
            feature: of ``fit``, ``restore`` or ``extend`` of this config.
            column: the values of the training rows of today.

        Raises:
            DataError: the feature does not support the type of the column, or a value.
        """
        assert isinstance(feature, Feature)
        return feature

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> Feature:
        """Rebuild the feature from the result of ``Feature.state``.

        Raises:
            KeyError, TypeError, ValueError: ``state`` does not belong to this feature.
        """
