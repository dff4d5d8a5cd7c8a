"""Titles and other short texts as vectors of a small sentence encoder."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from candid.errors import ConfigError, DataError
from candid.features.protocol import Feature, FeatureConfig
from candid.features.sentence_encoder import encoder_name, sentence_vectors
from candid.features.values import Numbers


class Text(Feature):
    """A vector of length 1 for each text, zeros for null and blank text.

    Vectors are cut to their first M numbers, which the encoder was trained for
    (Kusupati et al., "Matryoshka representation learning", NeurIPS 2022).

    Args:
        encoder: name and version of the encoder.
        dim: M.

    Raises:
        ConfigError: the encoder is not installed, or has another version.
    """

    class Config(FeatureConfig):
        """Settings of ``Text``."""

        dim: Literal[64, 128, 256] = Field(256, description="width of the vector")

        def fit(self, column: pl.Series) -> Text:
            """Check the column; the state is the name of the encoder."""
            _texts(column)
            return Text(encoder_name(), dim=self.dim)

        def restore(self, state: dict[str, Any]) -> Text:
            """Rebuild the feature from its ``state``; ``ConfigError`` without that encoder."""
            return Text(state["encoder"], dim=self.dim)

    def __init__(self, encoder: str, *, dim: int) -> None:
        if not isinstance(encoder, str):
            raise TypeError("encoder must be text")
        installed = encoder_name()
        if encoder != installed:
            raise ConfigError(
                f"the model was trained with {encoder}, but {installed} is installed and may give "
                f"other vectors; run pip install {encoder.replace(' ', '==')}"
            )
        self.encoder = encoder
        self.dim = dim

    def __repr__(self) -> str:
        return f"Text({self.encoder!r}, dim={self.dim})"

    def encode(self, column: pl.Series) -> Numbers:
        """Encode n texts as numbers [n, M]; each distinct text is encoded once."""
        texts = _texts(column)
        distinct = texts.drop_nulls().unique().sort()
        vectors = np.zeros((1 + len(distinct), self.dim), dtype=np.float32)
        if len(distinct):
            cut = sentence_vectors(distinct.to_list())[:, : self.dim]
            length = np.linalg.norm(cut, axis=1, keepdims=True)
            vectors[1:] = cut / np.where(length > 0, length, 1.0)
        positions = pl.DataFrame({"text": distinct}).with_row_index("position", offset=1)
        rows = pl.DataFrame({"text": texts}).join(
            positions, on="text", how="left", maintain_order="left"
        )
        return Numbers(torch.from_numpy(vectors[rows["position"].fill_null(0).to_numpy()]))

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {"encoder": self.encoder}


def _texts(column: pl.Series) -> pl.Series:
    """Return texts without surrounding blanks; null for blank text."""
    dtype = column.dtype
    is_text = dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)
    if not is_text and column.null_count() < len(column):
        raise DataError(
            f"values must be text, got {dtype}; convert them or give the feature another type"
        )
    texts = column.cast(pl.String).str.strip_chars() if is_text else column.cast(pl.String)
    return texts.set(texts == "", None)
