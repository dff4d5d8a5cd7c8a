"""What is said of people who are no users of the dataset, as a table like that of the users."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from candid.component import lookup
from candid.errors import DataError, UnknownNameError

SEPARATOR = "|"
"""Between the values of a list that is written as text."""
TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
"""Booleans as text, in any case."""


def frame_of(
    attributes: Sequence[Mapping[str, Any]],
    schema: Mapping[str, pl.DataType],
    kind: str = "users",
) -> pl.DataFrame:
    """A row for each person, null where an attribute is not known.

    Args:
        attributes: of each person, by column. Text is read as the column's type; None, NaN and
            blank text are not known.
        schema: the columns and their types.
        kind: "users", or "items", whose attributes are read alike.

    Raises:
        DataError: no such column, or a value that is not of its type. What the type could hold
            only in part, as an integer 25.5, is none.
    """
    for row in attributes:
        for name in row:
            try:
                lookup(schema, f"attribute of {kind}", name)
            except UnknownNameError as error:
                raise DataError(str(error)) from None
    return pl.DataFrame(
        [
            _column(name, [row.get(name) for row in attributes], dtype, kind)
            for name, dtype in schema.items()
        ]
    )


def _column(name: str, values: Sequence[Any], dtype: pl.DataType, kind: str) -> pl.Series:
    if isinstance(dtype, pl.Categorical | pl.Enum):
        # A value that the column never held is an unknown one, not an error.
        dtype = pl.String()
    read = []
    for value in values:
        try:
            read.append(_value(value, dtype))
            _series(name, read[-1:], dtype)
        except (pl.exceptions.PolarsError, ArithmeticError, TypeError, ValueError):
            raise DataError(
                f"attribute {name!r} of {kind} is of type {dtype}, which {value!r} is not; write "
                f"{_advice(dtype)}"
            ) from None
    return _series(name, read, dtype)


def _series(name: str, values: Sequence[Any], dtype: pl.DataType) -> pl.Series:
    if isinstance(dtype, pl.Datetime):
        moments = pl.Series(name, values, dtype=pl.Datetime("us"))
        if dtype.time_zone is not None:
            moments = moments.dt.replace_time_zone("UTC").dt.convert_time_zone(dtype.time_zone)
        return moments.cast(dtype)
    return pl.Series(name, values, dtype=dtype, strict=True)


def _value(value: Any, dtype: pl.DataType) -> Any:
    """A value as Python holds the type; None where it is not known.

    Raises:
        ArithmeticError, TypeError, ValueError: it is not of the type.
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
        moment = _moment(value)
        return _day(moment) if isinstance(dtype, pl.Date) else moment
    if isinstance(value, bool):
        raise TypeError("a boolean is no number")
    if isinstance(dtype, pl.Decimal):
        return _decimal(value, dtype.scale)
    if dtype.is_integer():
        return _whole(value)
    if dtype.is_float():
        return float(value)
    raise TypeError("no feature reads this type")


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
            return TRUTH[value.lower()]
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


def _moment(value: Any) -> datetime.datetime:
    """A moment of UTC, without saying so."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if not isinstance(value, datetime.date):
        raise TypeError("not a moment")
    if not isinstance(value, datetime.datetime):
        return datetime.datetime(value.year, value.month, value.day)
    return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)


def _day(moment: datetime.datetime) -> datetime.date:
    if moment.time() != datetime.time():
        raise ValueError("a date has no time of day")
    return moment.date()


def _advice(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List | pl.Array):
        return f"a list, or in text its members with {SEPARATOR!r} between"
    if isinstance(dtype, pl.Boolean):
        return "true or false"
    if isinstance(dtype, pl.Date):
        return "a date such as 2026-01-31"
    if isinstance(dtype, pl.Datetime):
        return "a moment such as 2026-01-31T18:30"
    if dtype.is_integer():
        return "a whole number that fits"
    return "a number" if dtype.is_numeric() else "text"
