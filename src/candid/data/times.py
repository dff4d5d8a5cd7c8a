"""Times in any form, read as int64 microseconds since 1970-01-01 UTC."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from candid.errors import ConfigError

UNITS = {
    "seconds": (1e11, 1_000_000),
    "milliseconds": (1e14, 1_000),
    "microseconds": (1e17, 1),
    "nanoseconds": (float("inf"), 1),
}
"""Unit -> the limit of its size, and the factor to microseconds (nanoseconds are divided).

A unit reaches to the year 5138 and begins in 1973, where the limit of the finer unit before it is.
"""
SMALLEST = 1e8
"""Numbers below this size (1973 in seconds, and counters) fit every unit."""

CALENDAR = {
    "YYYYMMDD": (19000101, 21001231),
    "YYYYMMDDhhmm": (190001010000, 210012312359),
    "YYYYMMDDhhmmss": (19000101000000, 21001231235959),
}
"""Dates written as a number -> the range that most numbers of the column must be in."""
FULL_FORM = "%Y%m%d%H%M%S"

# ISO 8601 by length, after a final "Z" or "UTC" was removed and "T" was replaced by a space.
TEXT_FORMS = {10: "%Y-%m-%d", 16: "%Y-%m-%d %H:%M", 19: "%Y-%m-%d %H:%M:%S"}
LONGER_FORM = "%Y-%m-%d %H:%M:%S%.f"
OFFSET_FORMS = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
"""With an offset from UTC: +02:00, +0200 or +02."""
SHORTEST_WITH_OFFSET = 19


def to_number(value: pl.Expr) -> pl.Expr:
    """Convert numbers, or text of numbers, to Float64; other text and NaN become null."""
    return value.cast(pl.Float64, strict=False).fill_nan(None)


def number_statistics(number: pl.Expr) -> dict[str, pl.Expr]:
    """Return the statistics of a column from ``to_number`` for ``units_of``."""
    size = number.abs()
    statistics = {"numbers": number.count(), "largest": size.max()}
    for unit, (low, high) in _ranges().items():
        statistics[unit] = size.is_between(low, high, closed="left").sum()
    for form, (first, last) in CALENDAR.items():
        statistics[form] = number.is_between(first, last).sum()
    return statistics


def _ranges() -> dict[str, tuple[float, float]]:
    """Return the range of sizes that belongs to each unit alone."""
    limits = [SMALLEST, *(limit for limit, _ in UNITS.values())]
    return dict(zip(UNITS, itertools.pairwise(limits), strict=True))


def is_of_unit(value: pl.Expr, unit: str) -> pl.Expr:
    """Whether a number has a size that belongs to ``unit`` alone."""
    return to_number(value).abs().is_between(*_ranges()[unit], closed="left")


def units_of(statistics: Mapping[str, Any]) -> list[str]:
    """Return the form of a column of numbers: one entry, or several if they contradict.

    Args:
        statistics: values of ``number_statistics``.

    Returns:
        one form of ``CALENDAR`` where more than half of the numbers are in its range; otherwise
        the units of ``UNITS`` that the sizes of the numbers belong to.
    """
    for form in CALENDAR:
        if 2 * statistics[form] > statistics["numbers"]:
            return [form]
    units = [unit for unit in UNITS if statistics[unit]]
    if units:
        return units
    largest = statistics["largest"] or 0
    return [next((unit for unit, (limit, _) in UNITS.items() if largest < limit), "nanoseconds")]


def from_number(value: pl.Expr, unit: str) -> pl.Expr:
    """Convert numbers, or text of numbers, to microseconds; fractions are kept.

    Args:
        value: numbers since 1970, or dates written as numbers.
        unit: key of ``UNITS`` or ``CALENDAR``.

    Returns:
        Int64; null for numbers that are too large, or not a date.
    """
    number = to_number(value)
    whole = value.cast(pl.Int64, strict=False)
    if unit in CALENDAR:
        # Text such as "20240101.0" cannot be read as Int64 directly.
        text = pl.coalesce(whole, number.cast(pl.Int64, strict=False)).cast(pl.String)
        dates = [
            pl.when(text.str.len_bytes() == len(name)).then(text + "000000").str.slice(0, 14)
            for name in CALENDAR
        ]
        date = pl.coalesce(dates).str.to_datetime(FULL_FORM, time_unit="us", strict=False)
        return date.to_physical()
    if unit == "nanoseconds":
        return pl.coalesce(whole, number.cast(pl.Int64, strict=False)) // 1_000
    factor = UNITS[unit][1]
    return pl.coalesce(
        pl.when(whole.cast(pl.Float64) == number).then(whole * factor),
        (number * factor).round().cast(pl.Int64, strict=False),
    )


def normalize_text(value: pl.Expr) -> pl.Expr:
    """Bring ISO 8601 text into the format of ``TEXT_FORMS``; an offset from UTC stays."""
    text = value.str.strip_suffix("Z").str.strip_suffix("UTC").str.strip_suffix(" ")
    return text.str.replace("T", " ", literal=True)


def text_statistics(text: pl.Expr) -> dict[str, pl.Expr]:
    """Return the statistics of a column from ``normalize_text`` for ``from_text``."""
    # A sign after the minutes can only be that of an offset.
    after_minutes = text.str.slice(len("2026-01-31 18:30"))
    return {
        "lengths": text.str.len_bytes().unique().drop_nulls().implode(),
        "offsets": after_minutes.str.contains("[+-]").any(),
    }


def from_text(value: pl.Expr, lengths: Iterable[int], *, offsets: bool = True) -> pl.Expr:
    """Convert ISO 8601 text to microseconds; other text becomes null. The default zone is UTC.

    Reads what pandas, Spark, PostgreSQL and BigQuery write: a space or a T before the time,
    fractions of a second, and a zone as Z, UTC, +02:00, +0200 or +02.

    Args:
        value: text.
        lengths: lengths of ``normalize_text(value)``; only forms of these lengths are tried.
        offsets: whether a text can have an offset from UTC.
    """
    text, lengths = normalize_text(value), set(lengths)
    forms = [form for length, form in TEXT_FORMS.items() if length in lengths]
    if any(length > max(TEXT_FORMS) for length in lengths):
        forms.append(LONGER_FORM)
    if offsets and any(length >= SHORTEST_WITH_OFFSET for length in lengths):
        forms += OFFSET_FORMS
    parsed = [
        text.str.to_datetime(form, time_unit="us", strict=False).dt.replace_time_zone(None)
        for form in forms
    ]
    return pl.coalesce(*parsed, pl.lit(None, pl.Datetime("us"))).to_physical()


def as_utc(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Convert dates and datetimes, zoned or not, to UTC datetimes of microseconds."""
    value = value.cast(pl.Datetime("us", getattr(dtype, "time_zone", None)))
    return value.dt.convert_time_zone("UTC").dt.replace_time_zone(None)


def parse_cut(value: int | float | str, unit: str | None = None) -> int:
    """Convert a cut of ``SplitConfig`` that is not a quantile to microseconds.

    Args:
        value: ISO text, in UTC without a zone, or a number in the form of the time column.
        unit: form of the time column, key of ``UNITS`` or ``CALENDAR``; None for a column of
            dates, where the size of ``value`` implies its form.

    Raises:
        ConfigError: not a date, or a number that is not in the form of the column.
    """
    if isinstance(value, str):
        time = pl.select(from_text(pl.lit(value), range(len(value) + 1))).item()
        if time is None:
            raise ConfigError(
                f"split cut {value!r} must be a quantile between 0 and 1, an ISO date or a number"
            )
        return int(time)
    if unit is None:
        statistics = pl.DataFrame({"cut": [value]}).select(
            **number_statistics(to_number(pl.col("cut")))
        )
        (unit,) = units_of(statistics.row(0, named=True))
    time = pl.select(from_number(pl.lit(value), unit)).item()
    if time is None:
        raise ConfigError(f"split cut {value} must be {unit}, as the times of the data")
    return int(time)
