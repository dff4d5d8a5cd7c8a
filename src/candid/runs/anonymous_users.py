"""Attributes of anonymous users, or of new items, parsed into a table of the right types."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from candid.component import lookup
from candid.errors import DataError, UnknownNameError

SEPARATOR = "|"
"""Separator of the values of a list that is written as text."""
BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
"""Booleans as text, in any letter case."""


def parse_attributes(
    attributes: Sequence[Mapping[str, Any]],
    schema: Mapping[str, pl.DataType],
    table: Literal["users", "items"] = "users",
) -> pl.DataFrame:
    """Parse attributes into one row per user (or item), null where an attribute is unknown.

    Args:
        attributes: of each user, by column. Text is parsed as the type of the column; None, NaN
            and blank text are unknown values.
        schema: the columns and their types.
        table: "users" or "items", for messages.

    Raises:
        DataError: there is no such column, or a value is of another type. A value that the type
            could hold only in part, such as 25.5 for an integer, is of another type.
    """
    for row in attributes:
        for name in row:
            try:
                lookup(schema, f"attribute of {table}", name)
            except UnknownNameError as error:
                raise DataError(str(error)) from None
    return pl.DataFrame(
        [
            _column(name, [row.get(name) for row in attributes], dtype, table)
            for name, dtype in schema.items()
        ]
    )


def _column(name: str, values: Sequence[Any], dtype: pl.DataType, table: str) -> pl.Series:
    if isinstance(dtype, pl.Categorical | pl.Enum):
        # A category that the column does not have is an unknown value, not an error.
        dtype = pl.String()
    parsed: list[Any] = []
    for value in values:
        try:
            parsed.append(_value(value, dtype))
            _series(name, parsed[-1:], dtype)
        except (pl.exceptions.PolarsError, ArithmeticError, TypeError, ValueError):
            raise DataError(
                f"attribute {name!r} of {table} must be {dtype}, got {value!r}: write "
                f"{_advice(dtype)}"
            ) from None
    return _series(name, parsed, dtype)


def _series(name: str, values: Sequence[Any], dtype: pl.DataType) -> pl.Series:
    if isinstance(dtype, pl.Datetime):
        times = pl.Series(name, values, dtype=pl.Datetime("us"))
        if dtype.time_zone is not None:
            times = times.dt.replace_time_zone("UTC").dt.convert_time_zone(dtype.time_zone)
        return times.cast(dtype)
    return pl.Series(name, values, dtype=dtype, strict=True)


def _value(value: Any, dtype: pl.DataType) -> Any:
    """Convert a value to the Python type of ``dtype``; None where it is unknown.

    Raises:
        ArithmeticError, TypeError, ValueError: the value is of another type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if _is_missing(value) or isinstance(dtype, pl.Null):
        return None
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        assert isinstance(inner, pl.DataType)
        return [_value(member, inner) for member in _members(value)]
    if isinstance(dtype, pl.String):
        return _text(value)
    if isinstance(value, str):
        value = value.strip()
    if isinstance(dtype, pl.Boolean):
        return _boolean(value)
    if isinstance(dtype, pl.Date | pl.Datetime):
        timestamp = _datetime(value)
        return _day(timestamp) if isinstance(dtype, pl.Date) else timestamp
    if isinstance(value, bool):
        raise TypeError("a boolean is not a number")
    if isinstance(dtype, pl.Decimal):
        return _decimal(value, dtype.scale)
    if dtype.is_integer():
        return _whole(value)
    if dtype.is_float():
        return float(value)
    raise TypeError("features cannot read this type")


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, str):
        return value.split(SEPARATOR)
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        raise TypeError("not a list")
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | decimal.Decimal | datetime.date):
        return str(value)
    raise TypeError("not text")


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        try:
            return BOOLEANS[value.lower()]
        except KeyError:
            raise ValueError("neither true nor false") from None
    if value not in (0, 1):
        raise ValueError("neither true nor false")
    return bool(value)


def _whole(value: Any) -> int:
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError("not a whole number")
    return number


def _decimal(value: Any, scale: int) -> decimal.Decimal:
    number = decimal.Decimal(str(value))
    if number != round(number, scale):
        raise ValueError("more digits than the type has")
    return number


def _datetime(value: Any) -> datetime.datetime:
    """Convert to a time in UTC, without a time zone."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if not isinstance(value, datetime.date):
        raise TypeError("not a time")
    if not isinstance(value, datetime.datetime):
        return datetime.datetime(value.year, value.month, value.day)
    return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)


def _day(timestamp: datetime.datetime) -> datetime.date:
    if timestamp.time() != datetime.time():
        raise ValueError("a date has no time of day")
    return timestamp.date()


def _advice(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List | pl.Array):
        return f"a list, or text with {SEPARATOR!r} between the members"
    if isinstance(dtype, pl.Boolean):
        return "true or false"
    if isinstance(dtype, pl.Date):
        return "a date such as 2026-01-31"
    if isinstance(dtype, pl.Datetime):
        return "a time such as 2026-01-31T18:30"
    if dtype.is_integer():
        return "a whole number that fits"
    return "a number" if dtype.is_numeric() else "text"
