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
    """One code per value: 0 unknown, 1.. the vocabulary in ascending order, then one for null.

    Null has a code if it was frequent enough in training, else it is unknown. Empty text is null.
    After ``Config.extend`` the codes of later values follow.

    Args:
        vocabulary: fitted values.
        missing_code: code of null; the values from this code on have the next one. None: null is
            unknown.

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
            code = len(vocabulary) + 1 if values.null_count() >= self.min_count else None
            return Categorical(vocabulary, missing_code=code)

        def extend(self, feature: Categorical, column: pl.Series) -> Categorical:
            """Return the feature with the frequent values that are new; null may get a code."""
            kind, values = to_kind(strip_text(column))
            vocabulary = feature.vocabulary.extend(kind, values, self.min_count, self.max_values)
            code = feature.missing_code
            if code is None and values.null_count() >= self.min_count:
                code = len(vocabulary) + 1
            return Categorical(vocabulary, missing_code=code)

        def restore(self, state: dict[str, Any]) -> Categorical:
            """Rebuild the feature from its ``state``."""
            vocabulary, code = Vocabulary.restore(state["vocabulary"]), state["missing_code"]
            if code is not None and type(code) is not int:
                raise TypeError("missing_code must be a whole number or null")
            if code is not None and not 1 <= code <= len(vocabulary) + 1:
                raise ValueError(
                    "missing_code must be between 1 and the size of the vocabulary + 1"
                )
            return Categorical(vocabulary, missing_code=code)

    def __init__(self, vocabulary: Vocabulary, *, missing_code: int | None) -> None:
        self.vocabulary = vocabulary
        self.missing_code = missing_code

    def __repr__(self) -> str:
        return f"Categorical({self.vocabulary!r}, missing_code={self.missing_code})"

    def encode(self, column: pl.Series) -> Codes:
        """Encode n values as codes [n, 1]."""
        kind, values = to_kind(strip_text(column))
        codes = self.vocabulary.codes(kind, values)
        if self.missing_code is not None:
            codes += codes >= self.missing_code
            codes = np.where(values.is_null().to_numpy(), self.missing_code, codes)
        num_codes = 1 + len(self.vocabulary) + (self.missing_code is not None)
        return Codes(torch.from_numpy(codes)[:, None], num_codes)

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {"vocabulary": self.vocabulary.state(), "missing_code": self.missing_code}
