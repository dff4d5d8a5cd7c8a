"""A number: standardised, on a log scale, or in buckets of equal size, with a missing flag."""

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
        scale: fitted scale.

    Example:
        >>> year = Number.Config().fit(pl.Series([1980, 2000]))
        >>> year.encode(pl.Series([2000, None])).values.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    class Config(FeatureConfig):
        """Settings of ``Number``."""

        scale: Literal["standard", "log", "quantile"] = Field(
            "standard",
            description="standard: (x - mean) / deviation; log: the same for sign(x) log(1 + |x|), "
            "for counts and prices; quantile: buckets of equal size",
        )
        num_buckets: int = Field(10, ge=2, description='buckets of scale = "quantile"')

        def fit(self, column: pl.Series) -> Number:
            """Fit mean and deviation, or the quantiles, on the values of training rows."""
            numbers = _numbers(column)
            present = numbers[~np.isnan(numbers)]
            if self.scale == "quantile":
                return Number(Quantile.fit(present, self.num_buckets))
            return Number(Standard.fit(present, is_log=self.scale == "log"))

        def restore(self, state: dict[str, Any]) -> Number:
            """Rebuild the feature from its ``state``."""
            if self.scale == "quantile":
                return Number(Quantile(_finite(state["boundaries"])))
            names = ("mean", "deviation", "lowest", "highest")
            mean, deviation, lowest, highest = _finite([state[name] for name in names])
            is_log = self.scale == "log"
            return Number(Standard(mean, deviation, is_log=is_log, lowest=lowest, highest=highest))

    def __init__(self, scale: Standard | Quantile) -> None:
        self.scale = scale

    def __repr__(self) -> str:
        return f"Number({self.scale!r})"

    def encode(self, column: pl.Series) -> Numbers | Codes:
        """Encode n numbers as numbers [n, 2] or codes [n, 1]."""
        return self.scale.encode(_numbers(column))

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return self.scale.state()


class Standard:
    """(x - mean) / deviation, and whether x is missing; a missing x counts as the mean.

    Args:
        mean: of the training rows.
        deviation: standard deviation of the training rows; 1 for a constant.
        is_log: whether to scale sign(x) log(1 + |x|) instead of x.
        lowest: scaled minimum of the training rows; lower values are clipped to it, because no
            weight was trained beyond it.
        highest: scaled maximum; higher values are clipped to it.

    Raises:
        ValueError: the deviation is not positive, or ``lowest`` is above ``highest``.
    """

    def __init__(
        self,
        mean: float,
        deviation: float,
        *,
        is_log: bool,
        lowest: float,
        highest: float,
    ) -> None:
        if deviation <= 0:
            raise ValueError("the deviation must be positive")
        if lowest > highest:
            raise ValueError("lowest must not be above highest")
        self.mean = mean
        self.deviation = deviation
        self.is_log = is_log
        self.lowest = lowest
        self.highest = highest

    def __repr__(self) -> str:
        name = "log" if self.is_log else "standard"
        return f"Standard({name}, mean={self.mean:g}, deviation={self.deviation:g})"

    @classmethod
    def fit(cls, values: npt.NDArray[np.float64], *, is_log: bool) -> Standard:
        """Fit to the values that are not missing; without any, mean 0 and deviation 1.

        Raises:
            DataError: the values are too large to be squared.
        """
        if is_log:
            values = _signed_log(values)
        if not len(values):
            return cls(0.0, 1.0, is_log=is_log, lowest=0.0, highest=0.0)
        if values.min() == values.max():  # rounding would leave a tiny deviation
            return cls(float(values[0]), 1.0, is_log=is_log, lowest=0.0, highest=0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(values.mean()), float(values.std())
        if not (math.isfinite(mean) and math.isfinite(deviation)):
            raise DataError(
                f"{np.abs(values).max():g} is too large to standardise; set scale to log"
            )
        deviation = deviation if deviation > 0 else 1.0
        lowest, highest = ((float(x) - mean) / deviation for x in (values.min(), values.max()))
        return cls(mean, deviation, is_log=is_log, lowest=lowest, highest=highest)

    def encode(self, numbers: npt.NDArray[np.float64]) -> Numbers:
        """Encode numbers [n], NaN for missing, as numbers [n, 2]."""
        is_missing = np.isnan(numbers)
        scaled = _signed_log(numbers) if self.is_log else numbers
        with np.errstate(over="ignore"):
            scaled = ((scaled - self.mean) / self.deviation).clip(self.lowest, self.highest)
        scaled = np.where(is_missing, 0.0, scaled)
        values = np.stack([scaled, is_missing], axis=1).astype(np.float32)
        return Numbers(torch.from_numpy(values), (0.0, 1.0))

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "lowest": self.lowest,
            "highest": self.highest,
        }


class Quantile:
    """The bucket of x: code 0 for missing, 1 below the first boundary, and so on upwards.

    Args:
        boundaries: ascending; a bucket includes its lower boundary.

    Raises:
        ValueError: the boundaries do not ascend.
    """

    def __init__(self, boundaries: list[float]) -> None:
        self.boundaries = np.array(boundaries, dtype=np.float64)
        if (np.diff(self.boundaries) <= 0).any():
            raise ValueError("the boundaries must ascend")

    def __repr__(self) -> str:
        return f"Quantile({len(self.boundaries) + 1} buckets)"

    @classmethod
    def fit(cls, values: npt.NDArray[np.float64], num_buckets: int) -> Quantile:
        """Fit boundaries so that every bucket has a value.

        Boundaries are values of the data above the minimum: with many equal values there are
        fewer than ``num_buckets`` buckets.
        """
        if not len(values):
            return cls([])
        parts = np.arange(1, num_buckets) / num_buckets
        boundaries = np.unique(np.quantile(values, parts, method="higher"))
        return cls(boundaries[boundaries > values.min()].tolist())

    def encode(self, numbers: npt.NDArray[np.float64]) -> Codes:
        """Encode numbers [n], NaN for missing, as codes [n, 1]."""
        buckets = 1 + np.searchsorted(self.boundaries, numbers, side="right")
        codes = np.where(np.isnan(numbers), 0, buckets).astype(np.int64)
        return Codes(torch.from_numpy(codes)[:, None], len(self.boundaries) + 2)

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {"boundaries": self.boundaries.tolist()}


def _signed_log(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(numbers) * np.log1p(np.abs(numbers))


def _finite(values: Any) -> list[float]:
    """Read finite numbers from a stored state."""
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("every number must be finite")
    return numbers


def _numbers(column: pl.Series) -> npt.NDArray[np.float64]:
    """Read a column as float64 [n], NaN for missing.

    Raises:
        DataError: the values are not numbers, or infinite.
    """
    dtype = column.dtype
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        text = column.cast(pl.String).str.strip_chars()
        not_blank = text.set(text == "", None)
        numbers = not_blank.cast(pl.Float64, strict=False)
        wrong = column.filter(numbers.is_null() & not_blank.is_not_null())
        if len(wrong):
            raise DataError(
                f"{wrong.first()!r} is not a number; fix it or give the feature another type"
            )
    elif dtype.is_numeric() or dtype == pl.Boolean or column.null_count() == len(column):
        numbers = column.cast(pl.Float64)
    else:
        raise DataError(
            f"values must be numbers, got {dtype}; convert them or give the feature another type"
        )
    if numbers.is_infinite().any():
        wrong = column.filter(numbers.is_infinite().fill_null(False))
        raise DataError(f"{wrong.first()!r} is not finite; fix it or leave it empty")
    return numbers.fill_null(math.nan).to_numpy()
