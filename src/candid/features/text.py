"""Titles and other short texts, by a small sentence encoder."""

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

    The encoder's vectors are cut to their first M numbers, which it was trained to stand
    (Kusupati et al., "Matryoshka representation learning", NeurIPS 2022).

    Args:
        encoder: name and version of the encoder.
        dim: M.

    Raises:
        ConfigError: the encoder is not installed, or in another version.
    """

    class Config(FeatureConfig):
        """Settings of ``Text``."""

        dim: Literal[64, 128, 256] = Field(256, description="width of the vector")

        def fit(self, column: pl.Series) -> Text:
            """Nothing to learn but which encoder it is; see ``FeatureConfig.fit``."""
            _texts(column)
            return Text(encoder_name(), self.dim)

        def restore(self, state: dict[str, Any]) -> Text:
            """See ``FeatureConfig.restore``; ``ConfigError`` without that encoder."""
            return Text(state["encoder"], self.dim)

    def __init__(self, encoder: str, dim: int = 256) -> None:
        if not isinstance(encoder, str):
            raise TypeError("the encoder is not a name")
        installed = encoder_name()
        if encoder != installed:
            raise ConfigError(
                f"the model was trained with {encoder}, not with {installed}, which may encode "
                f"otherwise: install it with pip install {encoder.replace(' ', '==')}"
            )
        self.encoder = encoder
        self.dim = dim

    def encode(self, column: pl.Series) -> Numbers:
        """Numbers [n, M]; see ``Feature.encode``. Each distinct text is encoded once."""
        texts = _texts(column)
        distinct = texts.drop_nulls().unique().sort()
        vectors = np.zeros((1 + len(distinct), self.dim), dtype=np.float32)
        if len(distinct):
            cut = sentence_vectors(distinct.to_list())[:, : self.dim]
            length = np.linalg.norm(cut, axis=1, keepdims=True)
            vectors[1:] = cut / np.where(length > 0, length, 1.0)
        places = pl.DataFrame({"text": distinct}).with_row_index("place", offset=1)
        rows = pl.DataFrame({"text": texts}).join(
            places, on="text", how="left", maintain_order="left"
        )
        return Numbers(torch.from_numpy(vectors[rows["place"].fill_null(0).to_numpy()]))

    def state(self) -> dict[str, Any]:
        """See ``Feature.state``."""
        return {"encoder": self.encoder}


def _texts(column: pl.Series) -> pl.Series:
    """The texts without space around them; null where nothing is left."""
    dtype = column.dtype
    is_text = dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)
    if not is_text and column.null_count() < len(column):
        raise DataError(
            f"values of type {dtype} are not text; convert them or give the feature another type"
        )
    texts = column.cast(pl.String).str.strip_chars() if is_text else column.cast(pl.String)
    return texts.set(texts == "", None)
