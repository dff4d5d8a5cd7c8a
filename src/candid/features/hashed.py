"""Unbounded ids and text, hashed several times so that collisions do not stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import Field

from candid.errors import DataError
from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Codes
from candid.features.vocabulary import Kind, require_kind, restored_kind, typed

UInt64Array = npt.NDArray[np.uint64]


class Hashed(Feature):
    """K codes a value, all in one table of buckets; 0 for null.

    Two values that meet in one bucket part in another: with m buckets they share all K with
    probability m^-K. A tower takes the mean of the K vectors, much as in Serrà & Karatzoglou,
    "Getting deep recommenders fit: Bloom embeddings for sparse binary input/output networks"
    (RecSys 2017).
    The hash is defined here and nowhere else, so that codes never change under a model.

    Args:
        kind: of the values seen in training; those of another kind would silently get other
            codes. None takes all.
        num_buckets: m.
        num_hashes: K.
    """

    class Config(FeatureConfig):
        """Settings of ``Hashed``."""

        num_buckets: int = Field(
            10_000, ge=2, le=2**31, description="rows of the table that all values share"
        )
        num_hashes: int = Field(
            2, ge=1, le=16, description="buckets a value; two values seldom share all of them"
        )

        def fit(self, column: pl.Series) -> Hashed:
            """Learn the kind of the values; see ``FeatureConfig.fit``."""
            return Hashed(typed(column)[0], self.num_buckets, self.num_hashes)

        def restore(self, state: dict[str, Any]) -> Hashed:
            """See ``FeatureConfig.restore``."""
            return Hashed(restored_kind(state["kind"]), self.num_buckets, self.num_hashes)

    def __init__(self, kind: Kind | None, num_buckets: int, num_hashes: int = 2) -> None:
        self.kind = kind
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes

    def encode(self, column: pl.Series) -> Codes:
        """Codes [n, K]; see ``Feature.encode``."""
        kind, values = typed(column)
        require_kind(kind, self.kind)
        codes = np.zeros((len(values), self.num_hashes), dtype=np.int64)
        if kind is not None:
            is_given = values.is_not_null()
            stream = np.arange(self.num_hashes, dtype=np.uint64) * GOLDEN
            hashes = mixed(_hashes(kind, values.filter(is_given))[:, None] + stream)
            codes[is_given.to_numpy()] = 1 + (hashes % np.uint64(self.num_buckets)).astype(np.int64)
        return Codes(torch.from_numpy(codes), 1 + self.num_buckets)

    def state(self) -> dict[str, Any]:
        """See ``Feature.state``."""
        return {"kind": self.kind}


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROWS_AT_ONCE = 1 << 16  # bounds the eight bytes that each byte of text becomes


def mixed(x: UInt64Array) -> UInt64Array:
    """SplitMix64 of each x: Steele, Lea & Flood, "Fast splittable PRNGs" (OOPSLA 2014)."""
    z = x + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hashes(kind: Kind, values: pl.Series) -> UInt64Array:
    """64 bits for each of n values without null."""
    if kind == "text":
        starts = range(0, len(values), ROWS_AT_ONCE)
        return np.concatenate([_text_hashes(values.slice(s, ROWS_AT_ONCE)) for s in starts])
    signed = values.cast(pl.Int64, strict=False)
    if not signed.null_count():
        return signed.to_numpy().view(np.uint64)
    unsigned = values.cast(pl.UInt64, strict=False)
    if unsigned.null_count():
        bad = values.filter(unsigned.is_null())
        raise DataError(f"{bad.to_list()[0]} does not fit 64 bits; convert the column to text")
    return unsigned.to_numpy()


def _text_hashes(texts: pl.Series) -> UInt64Array:
    """Sum over bytes of a random word for place and byte: simple tabulation hashing.

    The table is SplitMix64 itself. Texts are not empty.
    """
    lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
    data = np.frombuffer(str(texts.str.join("").item()).encode(), dtype=np.uint8)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    words = mixed((place * 256 + data).astype(np.uint64))
    return mixed(np.add.reduceat(words, starts) ^ lengths.astype(np.uint64))
