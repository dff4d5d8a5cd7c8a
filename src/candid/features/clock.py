"""A moment as its place in the day and in the week: what people want at night is not at noon."""

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
    """Sine and cosine of the time of day and of the day of the week; a missing one is marked.

    A column of dates, of dates with time, or of ISO 8601 text, which is UTC unless it names a zone.
    On a circle 23:59 is beside 00:00. Day and week change on the second, not in steps.

    Args:
        utc_offset: hours to add to UTC for the clock that people see.
    """

    class Config(FeatureConfig):
        """Settings of ``Clock``."""

        utc_offset: float = Field(
            0.0, ge=-14, le=14, description="hours to add to UTC for the clock that people see"
        )

        def fit(self, column: pl.Series) -> Clock:
            """Learn nothing; see ``FeatureConfig.fit``."""
            _microseconds(column)
            return Clock(self.utc_offset)

        def restore(self, state: dict[str, Any]) -> Clock:
            """See ``FeatureConfig.restore``."""
            if state["utc_offset"] != self.utc_offset:
                raise ValueError("the clock has another utc_offset")
            return Clock(self.utc_offset)

    def __init__(self, utc_offset: float = 0.0) -> None:
        self.utc_offset = utc_offset

    def encode(self, column: pl.Series) -> Numbers:
        """Numbers [n, 5]: day, week, and whether it is missing; see ``Feature.encode``."""
        moments = _microseconds(column)
        is_missing = moments.is_null().to_numpy()
        # 1970-01-01 was a Thursday; the phase of the week is any constant.
        local = moments.fill_null(0).to_numpy() + round(self.utc_offset * HOUR)
        cycles = [2 * math.pi * (local % period) / period for period in (DAY, 7 * DAY)]
        parts = [wave(cycle) for cycle in cycles for wave in (np.sin, np.cos)]
        numbers = np.where(is_missing, 0.0, np.stack(parts))
        values = np.vstack([numbers, is_missing]).T.astype(np.float32)
        return Numbers(torch.from_numpy(values), (0.0, 0.0, 0.0, 0.0, 1.0))

    def state(self) -> dict[str, Any]:
        """See ``Feature.state``."""
        return {"utc_offset": self.utc_offset}


def _microseconds(column: pl.Series) -> pl.Series:
    """Moments as Int64 microseconds since 1970-01-01 UTC."""
    dtype = column.dtype
    if isinstance(dtype, pl.Null):
        return column.cast(pl.Int64)
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return _from_text(column.cast(pl.String).str.strip_chars())
    if not isinstance(dtype, pl.Datetime | pl.Date):
        raise DataError(
            f"it has type {dtype}, not a date or a date with time; convert it or use another "
            "type of feature"
        )
    return column.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))).to_physical()


def _from_text(column: pl.Series) -> pl.Series:
    texts = pl.DataFrame({"text": column.set(column == "", None)})
    text = pl.col("text")
    lengths = texts.select(times.plain_text(text).str.len_bytes()).to_series().unique()
    read = times.from_text(text, lengths.drop_nulls().to_list())
    moments = texts.with_columns(moment=read)["moment"]
    bad = texts["text"].filter(moments.is_null() & texts["text"].is_not_null())
    if len(bad):
        raise DataError(
            f"{bad.first()!r} is not a moment such as 2026-01-31 or 2026-01-31T18:30; repair it or "
            "leave it empty"
        )
    return moments
