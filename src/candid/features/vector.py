"""A vector that the table brings along: an embedding of an image, a text, a graph."""

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
    """A column of lists or arrays of M numbers each; null is zeros.

    Args:
        width: M.
        normalize: scale every vector to length 1; zeros stay.
    """

    class Config(FeatureConfig):
        """Settings of ``Vector``."""

        normalize: bool = Field(False, description="scale every vector to length 1")

        def fit(self, column: pl.Series) -> Vector:
            """Learn the width; see ``FeatureConfig.fit``."""
            _require_vectors(column)
            if isinstance(column.dtype, pl.Array):
                width = column.dtype.shape[0]
            else:
                given = column.drop_nulls()
                if not len(given):
                    raise DataError("no row that is trained on has a vector")
                width = len(given[0])
            if width < 1:
                raise DataError("vectors are empty; leave the feature out")
            return Vector(width, self.normalize)

        def restore(self, state: dict[str, Any]) -> Vector:
            """See ``FeatureConfig.restore``."""
            width = state["width"]
            if type(width) is not int or width < 1:
                raise ValueError("the width is not a positive integer")
            return Vector(width, self.normalize)

    def __init__(self, width: int, normalize: bool = False) -> None:
        self.width = width
        self.normalize = normalize

    def encode(self, column: pl.Series) -> Numbers:
        """Numbers [n, M]; see ``Feature.encode``. Rows in messages count from 1."""
        _require_vectors(column)
        values = np.zeros((len(column), self.width), dtype=np.float32)
        is_given = column.is_not_null().to_numpy()
        rows = np.flatnonzero(is_given)
        if len(rows):
            values[rows] = self._read(column.filter(pl.Series(is_given)), rows)
        return Numbers(torch.from_numpy(values))

    def state(self) -> dict[str, Any]:
        """See ``Feature.state``."""
        return {"width": self.width}

    def _read(self, given: pl.Series, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Vectors [m, M] float32 of the rows that have one."""
        lists = given.arr.to_list() if isinstance(given.dtype, pl.Array) else given
        lengths = lists.list.len().to_numpy()
        wrong = np.flatnonzero(lengths != self.width)
        if len(wrong):
            raise DataError(
                f"the vector of row {rows[wrong[0]] + 1:,} has {lengths[wrong[0]]} numbers, not "
                f"{self.width} as in training; give every row one width"
            )
        numbers = lists.explode().cast(pl.Float64).fill_null(float("nan")).to_numpy()
        vectors = numbers.reshape(-1, self.width)
        # What is not finite stays as it is, to be refused below.
        if self.normalize and np.isfinite(vectors).all():
            # By the largest number first: its square could leave the range of float64.
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
                "finite or beyond float32; repair it or leave the whole vector empty"
            )
        return narrow


def _require_vectors(column: pl.Series) -> None:
    dtype = column.dtype
    if column.null_count() == len(column) and not isinstance(dtype, pl.List | pl.Array):
        return
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    if inner is None or not (inner.is_numeric() or inner == pl.Null):
        raise DataError(
            f"values of type {dtype} are not lists of numbers; convert them or give the feature "
            "another type"
        )
