"""A value out of a vocabulary: a genre, a country, an age group."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import Field

from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Codes
from candid.features.vocabulary import Vocabulary, stripped, typed


class Categorical(Feature):
    """One code a value: 0 unknown, 1.. the vocabulary in ascending order, the last for null.

    Null has its code where it was frequent enough in training, else it is unknown; empty text
    is null.

    Args:
        vocabulary: the learnt values.
        has_missing: null has a code of its own.
    """

    class Config(FeatureConfig):
        """Settings of ``Categorical``."""

        min_count: int = Field(
            2,
            ge=1,
            description="rarer values share the unknown bucket, which trains it for new ones",
        )
        max_values: int | None = Field(
            None, ge=1, description="keep this many values at most, the most frequent"
        )

        def fit(self, column: pl.Series) -> Categorical:
            """Learn the vocabulary; see ``FeatureConfig.fit``."""
            kind, values = typed(stripped(column))
            vocabulary = Vocabulary.learn(kind, values, self.min_count, self.max_values)
            return Categorical(vocabulary, values.null_count() >= self.min_count)

        def restore(self, state: dict[str, Any]) -> Categorical:
            """See ``FeatureConfig.restore``."""
            if type(state["has_missing"]) is not bool:
                raise TypeError("has_missing is not a boolean")
            return Categorical(Vocabulary.restore(state["vocabulary"]), state["has_missing"])

    def __init__(self, vocabulary: Vocabulary, has_missing: bool) -> None:
        self.vocabulary = vocabulary
        self.has_missing = has_missing

    def encode(self, column: pl.Series) -> Codes:
        """Codes [n, 1]; see ``Feature.encode``."""
        kind, values = typed(stripped(column))
        codes = self.vocabulary.codes(kind, values)
        if self.has_missing:
            codes = np.where(values.is_null().to_numpy(), len(self.vocabulary) + 1, codes)
        num_codes = 1 + len(self.vocabulary) + self.has_missing
        return Codes(torch.from_numpy(codes)[:, None], num_codes)

    def state(self) -> dict[str, Any]:
        """See ``Feature.state``."""
        return {"vocabulary": self.vocabulary.state(), "has_missing": self.has_missing}
