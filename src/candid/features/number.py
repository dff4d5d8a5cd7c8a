"""A number: standardised, on a log scale, or in buckets of equal size; missing values shown."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import Field

from candid.errors import DataError
from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Codes, Numbers


class Number(Feature):
    """A number on a scale; null, NaN and empty text are missing.

    Args:
        scale: what was learnt.
    """

    class Config(FeatureConfig):
        """Settings of ``Number``."""

        scale: Literal["standard", "log", "quantile"] = Field(
            "standard",
            description="standard: less the mean, by the deviation; log: the same of "
            "sign(x) log(1 + |x|), for counts and prices; quantile: buckets of equal size",
        )
        num_buckets: int = Field(10, ge=2, description="buckets of scale quantile")

        def fit(self, column: pl.Series) -> Number:
            """Learn mean and deviation, or the quantiles; see ``FeatureConfig.fit``."""
            numbers = _numbers(column)
            given = numbers[~np.isnan(numbers)]
            if self.scale == "quantile":
                return Number(Quantile.learn(given, self.num_buckets))
            return Number(Standard.learn(given, self.scale == "log"))

        def restore(self, state: dict[str, Any]) -> Number:
            """See ``FeatureConfig.restore``."""
            if self.scale == "quantile":
                return Number(Quantile(_finite(state["boundaries"])))
            names = ("mean", "deviation", "lowest", "highest")
            mean, deviation, *bounds = _finite([state[name] for name in names])
            return Number(Standard(mean, deviation, self.scale == "log", *bounds))

    def __init__(self, scale: Standard | Quantile) -> None:
        self.scale = scale

    def encode(self, column: pl.Series) -> Numbers | Codes:
        """Numbers [n, 2] or Codes [n, 1]; see ``Feature.encode``."""
        return self.scale.encode(_numbers(column))

    def state(self) -> dict[str, Any]:
        """See ``Feature.state``."""
        return self.scale.state()


class Standard:
    """(x - mean) / deviation and whether x is missing, which then counts as the mean.

    Args:
        mean: of the trained rows.
        deviation: square root of their mean square distance from it; 1 for a constant.
        is_log: of sign(x) log(1 + |x|) in place of x.
        lowest: result of the least trained value; what is lower is taken for it, since a tower
            knows nothing of sizes that it never met.
        highest: likewise.

    Raises:
        ValueError: the deviation is not positive, or the bounds are the wrong way round.
    """

    def __init__(
        self,
        mean: float,
        deviation: float,
        is_log: bool = False,
        lowest: float = 0.0,
        highest: float = 0.0,
    ) -> None:
        if deviation <= 0:
            raise ValueError("the deviation is not positive")
        if lowest > highest:
            raise ValueError("the lowest value is above the highest")
        self.mean = mean
        self.deviation = deviation
        self.is_log = is_log
        self.lowest = lowest
        self.highest = highest

    @classmethod
    def learn(cls, given: npt.NDArray[np.float64], is_log: bool) -> Standard:
        """Learn from the values that are not missing; without any, mean 0 and deviation 1.

        Raises:
            DataError: they are too large to be squared.
        """
        if is_log:
            given = _signed_log(given)
        if not len(given):
            return cls(0.0, 1.0, is_log, 0.0, 0.0)
        if given.min() == given.max():  # rounding would leave a tiny deviation
            return cls(float(given[0]), 1.0, is_log, 0.0, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(given.mean()), float(given.std())
        if not (math.isfinite(mean) and math.isfinite(deviation)):
            raise DataError(
                f"{np.abs(given).max():g} is too large to standardise; set scale to log"
            )
        deviation = deviation if deviation > 0 else 1.0
        lowest, highest = ((float(x) - mean) / deviation for x in (given.min(), given.max()))
        return cls(mean, deviation, is_log, lowest, highest)

    def encode(self, numbers: npt.NDArray[np.float64]) -> Numbers:
        """Numbers [n, 2] of numbers [n], NaN where missing."""
        is_missing = np.isnan(numbers)
        scaled = _signed_log(numbers) if self.is_log else numbers
        with np.errstate(over="ignore"):
            scaled = ((scaled - self.mean) / self.deviation).clip(self.lowest, self.highest)
        scaled = np.where(is_missing, 0.0, scaled)
        values = np.stack([scaled, is_missing], axis=1).astype(np.float32)
        return Numbers(torch.from_numpy(values), (0.0, 1.0))

    def state(self) -> dict[str, Any]:
        """What was learnt, as plain JSON values."""
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "lowest": self.lowest,
            "highest": self.highest,
        }


class Quantile:
    """The bucket of x: code 0 missing, 1 below the first boundary, and so on upwards.

    Args:
        boundaries: ascending; a bucket begins with its lower boundary.

    Raises:
        ValueError: they do not ascend.
    """

    def __init__(self, boundaries: list[float]) -> None:
        self.boundaries = np.array(boundaries, dtype=np.float64)
        if (np.diff(self.boundaries) <= 0).any():
            raise ValueError("the boundaries do not ascend")

    @classmethod
    def learn(cls, given: npt.NDArray[np.float64], num_buckets: int) -> Quantile:
        """Learn boundaries that leave no bucket without a value.

        They are values of the data, and none is the least: with many equal values there are
        fewer buckets than asked for.
        """
        if not len(given):
            return cls([])
        parts = np.arange(1, num_buckets) / num_buckets
        boundaries = np.unique(np.quantile(given, parts, method="higher"))
        return cls(boundaries[boundaries > given.min()].tolist())

    def encode(self, numbers: npt.NDArray[np.float64]) -> Codes:
        """Codes [n, 1] of numbers [n], NaN where missing."""
        buckets = 1 + np.searchsorted(self.boundaries, numbers, side="right")
        codes = np.where(np.isnan(numbers), 0, buckets).astype(np.int64)
        return Codes(torch.from_numpy(codes)[:, None], len(self.boundaries) + 2)

    def state(self) -> dict[str, Any]:
        """What was learnt, as plain JSON values."""
        return {"boundaries": self.boundaries.tolist()}


def _signed_log(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(numbers) * np.log1p(np.abs(numbers))


def _finite(values: Any) -> list[float]:
    """Read finite numbers from a stored state."""
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a number is not finite")
    return numbers


def _numbers(column: pl.Series) -> npt.NDArray[np.float64]:
    """Read a column as float64 [n]; NaN where missing.

    Raises:
        DataError: not numbers, or infinite.
    """
    dtype = column.dtype
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        text = column.cast(pl.String).str.strip_chars()
        given = text.set(text == "", None)
        numbers = given.cast(pl.Float64, strict=False)
        bad = column.filter(numbers.is_null() & given.is_not_null())
        if len(bad):
            raise DataError(
                f"{bad.first()!r} is not a number; repair it or give the feature another type"
            )
    elif dtype.is_numeric() or dtype == pl.Boolean or column.null_count() == len(column):
        numbers = column.cast(pl.Float64)
    else:
        raise DataError(
            f"values of type {dtype} are not numbers; convert them or give the feature another type"
        )
    if numbers.is_infinite().any():
        bad = column.filter(numbers.is_infinite().fill_null(False))
        raise DataError(f"{bad.first()!r} is not finite; repair it or leave it empty")
    return numbers.fill_null(math.nan).to_numpy()
