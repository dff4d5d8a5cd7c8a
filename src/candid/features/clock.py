"""A time as its position in the day and in the week."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import Field

from candid.data import times
from candid.errors import DataError
from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Numbers

HOUR = 3_600_000_000
DAY = 24 * HOUR
"""Microseconds."""


class Clock(Feature):
    """Sine and cosine of the time of day and of the time of the week, with a flag for missing.

    The column contains dates, datetimes, or ISO 8601 text (UTC unless it has a zone). 23:59 is
    encoded next to 00:00. Values change continuously, not in steps of days.

    Args:
        utc_offset: hours to add to UTC for local time.
    """

    class Config(FeatureConfig):
        """Settings of ``Clock``."""

        utc_offset: float = Field(
            0.0, ge=-14, le=14, description="hours to add to UTC for local time"
        )

        def fit(self, column: pl.Series) -> Clock:
            """Check the column; nothing is fitted."""
            _microseconds(column)
            return Clock(utc_offset=self.utc_offset)

        def restore(self, state: dict[str, Any]) -> Clock:
            """Rebuild the feature from its ``state``."""
            if state["utc_offset"] != self.utc_offset:
                raise ValueError("the state has another utc_offset")
            return Clock(utc_offset=self.utc_offset)

    def __init__(self, *, utc_offset: float) -> None:
        self.utc_offset = utc_offset

    def __repr__(self) -> str:
        return f"Clock(utc_offset={self.utc_offset})"

    def encode(self, column: pl.Series) -> Numbers:
        """Encode n times as numbers [n, 5]: day, week, and whether the time is missing."""
        timestamps = _microseconds(column)
        is_missing = timestamps.is_null().to_numpy()
        # 1970-01-01 was a Thursday; the phase of the week is arbitrary.
        local = timestamps.fill_null(0).to_numpy() + round(self.utc_offset * HOUR)
        cycles = [2 * math.pi * (local % period) / period for period in (DAY, 7 * DAY)]
        parts = [wave(cycle) for cycle in cycles for wave in (np.sin, np.cos)]
        numbers = np.where(is_missing, 0.0, np.stack(parts))
        values = np.vstack([numbers, is_missing]).T.astype(np.float32)
        return Numbers(torch.from_numpy(values), (0.0, 0.0, 0.0, 0.0, 1.0))

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {"utc_offset": self.utc_offset}


def _microseconds(column: pl.Series) -> pl.Series:
    """Convert times to Int64 microseconds since 1970-01-01 UTC."""
    dtype = column.dtype
    if isinstance(dtype, pl.Null):
        return column.cast(pl.Int64)
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return _from_text(column.cast(pl.String).str.strip_chars())
    if not isinstance(dtype, pl.Datetime | pl.Date):
        raise DataError(
            f"values must be dates or datetimes, got {dtype}; convert them or give the feature "
            "another type"
        )
    return column.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))).to_physical()


def _from_text(column: pl.Series) -> pl.Series:
    texts = pl.DataFrame({"text": column.set(column == "", None)})
    text = pl.col("text")
    lengths = texts.select(times.normalize_text(text).str.len_bytes()).to_series().unique()
    parsed = times.from_text(text, lengths.drop_nulls().to_list())
    timestamps = texts.with_columns(time=parsed)["time"]
    wrong = texts["text"].filter(timestamps.is_null() & texts["text"].is_not_null())
    if len(wrong):
        raise DataError(
            f"{wrong.first()!r} is not a time such as 2026-01-31 or 2026-01-31T18:30; fix it or "
            "leave it empty"
        )
    return timestamps
