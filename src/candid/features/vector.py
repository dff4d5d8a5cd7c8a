"""A vector that the table contains: an embedding of an image, a text, a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import Field

from candid.errors import DataError
from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Numbers


class Vector(Feature):
    """The M numbers of a list or array; null becomes zeros.

    Args:
        width: M.
        normalize: scale every vector to length 1; zeros stay.

    Example:
        >>> image = Vector.Config(normalize=True).fit(pl.Series([[3.0, 4.0]]))
        >>> image.encode(pl.Series([[0.0, 2.0], None])).values.tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """

    class Config(FeatureConfig):
        """Settings of ``Vector``."""

        normalize: bool = Field(False, description="scale every vector to length 1")

        def fit(self, column: pl.Series) -> Vector:
            """Fit the width to the values of training rows."""
            _require_vectors(column)
            if isinstance(column.dtype, pl.Array):
                width = column.dtype.shape[0]
            else:
                vectors = column.drop_nulls()
                if not len(vectors):
                    raise DataError("no training row has a vector; leave the feature out")
                width = len(vectors[0])
            if width < 1:
                raise DataError("vectors are empty; leave the feature out")
            return Vector(width, normalize=self.normalize)

        def restore(self, state: dict[str, Any]) -> Vector:
            """Rebuild the feature from its ``state``."""
            width = state["width"]
            if type(width) is not int or width < 1:
                raise ValueError("width must be a positive integer")
            return Vector(width, normalize=self.normalize)

    def __init__(self, width: int, *, normalize: bool) -> None:
        self.width = width
        self.normalize = normalize

    def __repr__(self) -> str:
        return f"Vector({self.width}, normalize={self.normalize})"

    def encode(self, column: pl.Series) -> Numbers:
        """Encode n vectors as numbers [n, M]; rows in messages count from 1."""
        _require_vectors(column)
        values = np.zeros((len(column), self.width), dtype=np.float32)
        is_present = column.is_not_null().to_numpy()
        rows = np.flatnonzero(is_present)
        if len(rows):
            values[rows] = self._read(column.filter(pl.Series(is_present)), rows)
        return Numbers(torch.from_numpy(values))

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {"width": self.width}

    def _read(self, values: pl.Series, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Convert values without null, with their row numbers, to vectors [m, M] float32."""
        lists = values.arr.to_list() if isinstance(values.dtype, pl.Array) else values
        lengths = lists.list.len().to_numpy()
        wrong = np.flatnonzero(lengths != self.width)
        if len(wrong):
            raise DataError(
                f"the vector of row {rows[wrong[0]] + 1:,} must have {self.width} numbers as in "
                f"training, got {lengths[wrong[0]]}; give every row one width"
            )
        numbers = lists.explode().cast(pl.Float64).fill_null(float("nan")).to_numpy()
        vectors = numbers.reshape(-1, self.width)
        # Vectors that are not finite are refused below.
        if self.normalize and np.isfinite(vectors).all():
            # Divide by the largest number first: its square could overflow float64.
            largest = np.abs(vectors).max(axis=1, keepdims=True)
            vectors = vectors / np.where(largest > 0, largest, 1.0)
            length = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.where(length > 0, length, 1.0)
        with np.errstate(over="ignore"):
            narrow = vectors.astype(np.float32)
        wrong = np.flatnonzero(~np.isfinite(narrow).all(axis=1))
        if len(wrong):
            raise DataError(
                f"the vector of row {rows[wrong[0]] + 1:,} has a number that is missing, not "
                "finite or too large for float32; fix it or leave the whole vector empty"
            )
        return narrow


def _require_vectors(column: pl.Series) -> None:
    dtype = column.dtype
    if column.null_count() == len(column) and not isinstance(dtype, pl.List | pl.Array):
        return
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    if inner is None or not (inner.is_numeric() or inner == pl.Null):
        raise DataError(
            f"values must be lists of numbers, got {dtype}; convert them or give the feature "
            "another type"
        )
