"""Ids and text without a vocabulary, hashed several times to resolve collisions."""

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
from candid.features.vocabulary import ValueKind, check_kind, parse_kind, to_kind

UInt64Array = npt.NDArray[np.uint64]


class Hashed(Feature):
    """K codes per value, all in one table of buckets; 0 for null.

    With m buckets, two values share all K codes with probability m^-K. A tower takes the mean of
    the K vectors, as in Serrà & Karatzoglou, "Getting deep recommenders fit: Bloom embeddings for
    sparse binary input/output networks" (RecSys 2017).
    The hash function is implemented here, so that codes never change for a trained model.

    Args:
        kind: of the values in training; values of another kind would get other codes and are
            refused. None accepts all kinds.
        num_buckets: m.
        num_hashes: K.
    """

    class Config(FeatureConfig):
        """Settings of ``Hashed``."""

        num_buckets: int = Field(10_000, ge=2, le=2**31, description="rows of the shared table")
        num_hashes: int = Field(
            2, ge=1, le=16, description="codes per value; two values rarely share all of them"
        )

        def fit(self, column: pl.Series) -> Hashed:
            """Fit the kind of the values."""
            return self._build(to_kind(column)[0])

        def restore(self, state: dict[str, Any]) -> Hashed:
            """Rebuild the feature from its ``state``."""
            return self._build(parse_kind(state["kind"]))

        def _build(self, kind: ValueKind | None) -> Hashed:
            return Hashed(kind, num_buckets=self.num_buckets, num_hashes=self.num_hashes)

    def __init__(self, kind: ValueKind | None, *, num_buckets: int, num_hashes: int) -> None:
        self.kind = kind
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes

    def __repr__(self) -> str:
        settings = f"num_buckets={self.num_buckets}, num_hashes={self.num_hashes}"
        return f"Hashed({self.kind!r}, {settings})"

    def encode(self, column: pl.Series) -> Codes:
        """Encode n values as codes [n, K]."""
        kind, values = to_kind(column)
        check_kind(kind, self.kind)
        codes = np.zeros((len(values), self.num_hashes), dtype=np.int64)
        if kind is not None:
            is_present = values.is_not_null()
            stream = np.arange(self.num_hashes, dtype=np.uint64) * GOLDEN
            hashes = splitmix64(_hashes(kind, values.filter(is_present))[:, None] + stream)
            codes[is_present.to_numpy()] = 1 + (hashes % np.uint64(self.num_buckets)).astype(
                np.int64
            )
        return Codes(torch.from_numpy(codes), 1 + self.num_buckets)

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {"kind": self.kind}


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
CHUNK = 1 << 16  # texts at a time: each byte of text needs eight bytes


def splitmix64(x: UInt64Array) -> UInt64Array:
    """Hash numbers of any shape with SplitMix64.

    Steele, Lea & Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
    """
    z = x + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_ids(source_ids: pl.Series, seed: int) -> UInt64Array:
    """Hash source ids, integers or text: [n] uint64.

    Args:
        source_ids: [n], without null.
        seed: another seed gives another order.
    """
    if source_ids.dtype == pl.String:
        # A text of the hash function must not be empty.
        values = _hashes("text", "#" + source_ids)
    else:
        values = _hashes("integer", source_ids)
    return splitmix64(values ^ splitmix64(np.array([seed], dtype=np.uint64)))


def _hashes(kind: ValueKind, values: pl.Series) -> UInt64Array:
    """Hash n values without null to 64 bits each."""
    if kind == "text":
        starts = range(0, len(values), CHUNK)
        return np.concatenate([_text_hashes(values.slice(s, CHUNK)) for s in starts])
    signed = values.cast(pl.Int64, strict=False)
    if not signed.null_count():
        return signed.to_numpy().view(np.uint64)
    unsigned = values.cast(pl.UInt64, strict=False)
    if unsigned.null_count():
        wrong = values.filter(unsigned.is_null())
        raise DataError(f"{wrong.to_list()[0]} does not fit 64 bits; convert the column to text")
    return unsigned.to_numpy()


def _text_hashes(texts: pl.Series) -> UInt64Array:
    """Hash texts by simple tabulation: the sum of a random word for each position and byte.

    SplitMix64 replaces the table. Texts must not be empty.
    """
    lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
    data = np.frombuffer(str(texts.str.join("").item()).encode(), dtype=np.uint8)
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(data)) - np.repeat(starts, lengths)
    words = splitmix64((position * 256 + data).astype(np.uint64))
    return splitmix64(np.add.reduceat(words, starts) ^ lengths.astype(np.uint64))
