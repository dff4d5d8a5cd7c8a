"""One value from a vocabulary: a genre, a country, an age group."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import Field

from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Codes
from candid.features.vocabulary import Vocabulary, strip_text, to_kind


class Categorical(Feature):
    """One code per value: 0 unknown, 1.. the vocabulary in ascending order, the last for null.

    Null has a code if it was frequent enough in training, else it is unknown. Empty text is null.

    Args:
        vocabulary: fitted values.
        has_missing: whether null has a code.

    Example:
        >>> genre = Categorical.Config(min_count=1).fit(pl.Series(["drama", "comedy", "drama"]))
        >>> genre.encode(pl.Series(["comedy", "western"])).ids.tolist()
        [[1], [0]]
    """

    class Config(FeatureConfig):
        """Settings of ``Categorical``."""

        min_count: int = Field(
            2,
            ge=1,
            description="minimum count of a value; rarer ones train the unknown bucket",
        )
        max_values: int | None = Field(
            None, ge=1, description="maximum vocabulary size; the most frequent values stay"
        )

        def fit(self, column: pl.Series) -> Categorical:
            """Fit the vocabulary on the values of training rows."""
            kind, values = to_kind(strip_text(column))
            vocabulary = Vocabulary.fit(kind, values, self.min_count, self.max_values)
            has_missing = values.null_count() >= self.min_count
            return Categorical(vocabulary, has_missing=has_missing)

        def restore(self, state: dict[str, Any]) -> Categorical:
            """Rebuild the feature from its ``state``."""
            if type(state["has_missing"]) is not bool:
                raise TypeError("has_missing must be a boolean")
            vocabulary = Vocabulary.restore(state["vocabulary"])
            return Categorical(vocabulary, has_missing=state["has_missing"])

    def __init__(self, vocabulary: Vocabulary, *, has_missing: bool) -> None:
        self.vocabulary = vocabulary
        self.has_missing = has_missing

    def __repr__(self) -> str:
        return f"Categorical({self.vocabulary!r}, has_missing={self.has_missing})"

    def encode(self, column: pl.Series) -> Codes:
        """Encode n values as codes [n, 1]."""
        kind, values = to_kind(strip_text(column))
        codes = self.vocabulary.codes(kind, values)
        if self.has_missing:
            codes = np.where(values.is_null().to_numpy(), len(self.vocabulary) + 1, codes)
        num_codes = 1 + len(self.vocabulary) + self.has_missing
        return Codes(torch.from_numpy(codes)[:, None], num_codes)

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {"vocabulary": self.vocabulary.state(), "has_missing": self.has_missing}
