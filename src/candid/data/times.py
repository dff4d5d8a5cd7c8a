"""Conversion of times in any form to int64 microseconds since 1970-01-01 UTC."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import polars as pl

from candid.errors import ConfigError

# The largest value decides the unit: up to year 5138 in seconds, from 1973 on in finer units.
UNITS = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))
"""Limit of seconds, milliseconds and microseconds -> factor to microseconds; above: nanoseconds."""

# Forms of ISO 8601 by length, after "T" was replaced by a space and a final "Z" removed.
TEXT_FORMS = {10: "%Y-%m-%d", 16: "%Y-%m-%d %H:%M", 19: "%Y-%m-%d %H:%M:%S"}
LONGER_FORMS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%z")


def from_number(value: pl.Expr, largest: float) -> pl.Expr:
    """Convert numbers, or text of numbers, to microseconds; fractions are kept.

    Args:
        value: since 1970.
        largest: largest absolute value of the column, which implies the unit.
    """
    number = value.cast(pl.Float64, strict=False).fill_nan(None)
    whole = value.cast(pl.Int64, strict=False)
    for limit, factor in UNITS:
        if largest < limit:
            exact = whole * factor
            return pl.coalesce(
                pl.when(whole.cast(pl.Float64) == number).then(exact),
                (number * factor).round().cast(pl.Int64, strict=False),
            )
    return pl.coalesce(whole, number.cast(pl.Int64, strict=False)) // 1_000


def normalize_text(value: pl.Expr) -> pl.Expr:
    """Bring ISO 8601 text into the format of ``TEXT_FORMS``."""
    return value.str.replace("T", " ", literal=True).str.strip_suffix("Z")


def from_text(value: pl.Expr, lengths: Iterable[int]) -> pl.Expr:
    """Convert ISO 8601 text to microseconds; other text becomes null. The default zone is UTC.

    Args:
        value: text.
        lengths: lengths of ``normalize_text(value)``; only forms of these lengths are tried.
    """
    text = normalize_text(value)
    forms = [form for length, form in TEXT_FORMS.items() if length in lengths]
    if any(length > max(TEXT_FORMS) for length in lengths):
        forms += LONGER_FORMS
    parsed = [
        text.str.to_datetime(form, time_unit="us", strict=False).dt.replace_time_zone(None)
        for form in forms
    ]
    return pl.coalesce(*parsed, pl.lit(None, pl.Datetime("us"))).to_physical()


def as_utc(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Convert dates and datetimes, zoned or not, to UTC datetimes of microseconds."""
    value = value.cast(pl.Datetime("us", getattr(dtype, "time_zone", None)))
    return value.dt.convert_time_zone("UTC").dt.replace_time_zone(None)


def parse_cut(value: float | str) -> int:
    """Convert a cut of ``SplitConfig`` that is not a quantile to microseconds.

    Args:
        value: ISO text, in UTC without a zone, or a number since 1970 in the unit that its size
            implies.

    Raises:
        ConfigError: text that is not a date.
    """
    if isinstance(value, str):
        try:
            time = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ConfigError(
                f"split cut {value!r} must be a quantile between 0 and 1, an ISO date or a number"
            ) from None
        if time.tzinfo is None:
            time = time.replace(tzinfo=datetime.UTC)
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return (time - epoch) // datetime.timedelta(microseconds=1)
    return int(pl.select(from_number(pl.lit(value), abs(value))).item())
