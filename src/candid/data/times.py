"""Times of every form as int64 microseconds since 1970-01-01 UTC."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import polars as pl

from candid.errors import ConfigError

# The largest value says the unit: up to year 5138 in seconds, from 1973 on in the finer ones.
UNITS = ((1e11, "seconds", 1_000_000), (1e14, "milliseconds", 1_000), (1e17, "microseconds", 1))

# Forms of ISO 8601 by length, after a "T" became a space and a final "Z" went.
TEXT_FORMS = {10: "%Y-%m-%d", 16: "%Y-%m-%d %H:%M", 19: "%Y-%m-%d %H:%M:%S"}
LONGER_FORMS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%z")


def unit_of(largest: float) -> str:
    """Name the unit of a numeric time column whose largest absolute value is ``largest``."""
    return next((name for limit, name, _ in UNITS if largest < limit), "nanoseconds")


def from_number(value: pl.Expr, largest: float) -> pl.Expr:
    """Turn numbers of any unit (or text of numbers) into microseconds; fractions survive."""
    number = value.cast(pl.Float64, strict=False).fill_nan(None)
    whole = value.cast(pl.Int64, strict=False)
    for limit, _, factor in UNITS:
        if largest < limit:
            exact = whole * factor
            return pl.coalesce(
                pl.when(whole.cast(pl.Float64) == number).then(exact),
                (number * factor).round().cast(pl.Int64, strict=False),
            )
    return pl.coalesce(whole, number.cast(pl.Int64, strict=False)) // 1_000


def plain_text(value: pl.Expr) -> pl.Expr:
    """Bring ISO 8601 text to the shape that the forms above describe."""
    return value.str.replace("T", " ", literal=True).str.strip_suffix("Z")


def from_text(value: pl.Expr, lengths: Iterable[int]) -> pl.Expr:
    """Turn ISO 8601 text into microseconds; null where it is none. Without zone it is UTC.

    Args:
        value: text.
        lengths: which lengths ``plain_text(value)`` has; only these forms are tried.
    """
    text = plain_text(value)
    forms = [form for length, form in TEXT_FORMS.items() if length in lengths]
    if any(length > max(TEXT_FORMS) for length in lengths):
        forms += LONGER_FORMS
    parsed = [
        text.str.to_datetime(form, time_unit="us", strict=False).dt.replace_time_zone(None)
        for form in forms
    ]
    return pl.coalesce(*parsed, pl.lit(None, pl.Datetime("us"))).to_physical()


def as_utc(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Turn dates and zoned or plain datetimes into UTC datetimes of microseconds."""
    value = value.cast(pl.Datetime("us", getattr(dtype, "time_zone", None)))
    return value.dt.convert_time_zone("UTC").dt.replace_time_zone(None)


def cut_from(value: float | str) -> int:
    """Turn a cut of ``SplitConfig`` that is no quantile into microseconds.

    Args:
        value: ISO text (UTC unless it says otherwise), or a number since 1970 in the unit that
            its size says.

    Raises:
        ConfigError: text that is not a date.
    """
    if isinstance(value, str):
        try:
            moment = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ConfigError(
                f"split cut {value!r} is neither a quantile, an ISO date nor a number"
            ) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return (moment - epoch) // datetime.timedelta(microseconds=1)
    return int(pl.select(from_number(pl.lit(value), abs(value))).item())
