"""What a feature is: a column, what was learnt of it from training rows, and its encoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import polars as pl
from pydantic import Field

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
