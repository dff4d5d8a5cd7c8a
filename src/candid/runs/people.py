"""What is said of people who are no users of the dataset, as a table like that of the users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from candid.component import lookup
from candid.errors import DataError, UnknownNameError

SEPARATOR = "|"
"""Between the values of a list that is written as text."""


def frame_of(
    attributes: Sequence[Mapping[str, Any]], schema: Mapping[str, pl.DataType]
) -> pl.DataFrame:
    """A row for each person, null where an attribute is not known.

    Args:
        attributes: of each person, by column; text is read as the column's type.
        schema: the columns and their types.

    Raises:
        DataError: no such column, or a value that is not of its type.
    """
    for person in attributes:
        for name in person:
            try:
                lookup(schema, "attribute of users", name)
            except UnknownNameError as error:
                raise DataError(str(error)) from None
    return pl.DataFrame(
        [_column(name, [p.get(name) for p in attributes], dtype) for name, dtype in schema.items()]
    )


def _column(name: str, values: Sequence[Any], dtype: pl.DataType) -> pl.Series:
    if isinstance(dtype, pl.List | pl.Array):
        values = [v.split(SEPARATOR) if isinstance(v, str) else v for v in values]
    try:
        given = pl.Series(name, values, strict=True)
        return given.cast(dtype, strict=True) if given.dtype != pl.Null else _nothing(given, dtype)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
        shown = next(repr(value) for value in values if value is not None)
        raise DataError(
            f"attribute {name!r} of users is of type {dtype}, which {shown} is not; write it as in "
            "the table of users"
        ) from None


def _nothing(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    return pl.Series(values.name, [None] * len(values), dtype=dtype)
