"""Tables in memory as sources: Polars, pandas, and all tables with the Arrow interface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from candid.data.readers import Source, check_columns
from candid.data.tables import storable_columns
from candid.errors import DataError

ARROW = ("__arrow_c_stream__", "__arrow_c_array__")
"""Methods of the Arrow PyCapsule interface: a stream of batches, and one batch."""


def is_table(data: object) -> bool:
    """Return whether ``data`` is a table: of Polars or pandas, or with the Arrow interface."""
    if isinstance(data, pl.Series):
        return False
    return (
        isinstance(data, pl.DataFrame | pl.LazyFrame)
        or is_pandas(data)
        or (any(hasattr(data, method) for method in ARROW) and not _is_of(data, "pandas"))
    )


def is_pandas(data: object) -> bool:
    """Return whether ``data`` is a pandas data frame, without importing pandas."""
    return _is_of(data, "pandas") and hasattr(data, "columns")


class TableReader:
    """The columns of a table in memory, converted to Polars on request.

    The table is not changed. A lazy frame is collected once, with the requested columns only. A
    table that can be read only once, such as a stream of Arrow batches, is read when this object
    is made.

    Args:
        table: see ``is_table``.
        name: of the table in messages, such as "the table of items".

    Raises:
        DataError: the table cannot be read.
    """

    def __init__(self, table: Any, name: str) -> None:
        self.name = name
        if isinstance(table, pl.DataFrame | pl.LazyFrame) or is_pandas(table):
            self._table = table
            return
        try:
            self._table = pl.DataFrame(table)
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order."""
        if isinstance(self._table, pl.LazyFrame):
            try:
                return self._table.collect_schema().names()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._unreadable(error) from error
        return list(self._table.columns)

    def storable_columns(self) -> list[str]:
        """Return the names of the columns that can be attributes, in order."""
        names = self.columns
        if isinstance(self._table, pl.LazyFrame):
            return storable_columns(self._table.collect_schema())
        return storable_columns(self.frame(names).schema)

    def source(self, columns: Iterable[str]) -> Source:
        """Return the named columns as a source.

        Raises:
            DataError: the table has no rows, a column is missing, or its values are of several
                types; the message names the table and the column.
        """
        names = list(dict.fromkeys(columns))
        known = self.columns
        hint = ""
        if is_pandas(self._table):
            levels = [level for level in self._table.index.names if level in names]
            if levels and levels[0] not in known:
                hint = "; it is in the index: call reset_index() on the table"
        check_columns(self.name, names, known, hint)
        frame = self.frame(names)
        if not frame.height:
            raise DataError(f"{self.name} has no rows; check how it was made")
        further = tuple(name for name in known if name not in names)
        return Source(self.name, frame.lazy(), None, _first_line, further_columns=further)

    def frame(self, names: Sequence[str]) -> pl.DataFrame:
        """Return the named columns.

        Raises:
            DataError: the values of a column are of several types, or the table cannot be read.
        """
        if isinstance(self._table, pl.LazyFrame):
            try:
                return self._table.select(names).collect(engine="streaming")
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._unreadable(error) from error
        if isinstance(self._table, pl.DataFrame):
            return self._table.select(names)
        return pl.DataFrame([self._from_pandas(name) for name in names])

    def _from_pandas(self, name: str) -> pl.Series:
        column = self._table[name]
        if hasattr(column, "columns"):
            raise DataError(
                f"{self.name} has several columns {name!r}; rename or remove all but one"
            )
        try:
            return _pandas_series(column).alias(name)
        except (
            TypeError,
            ValueError,
            OverflowError,
            pl.exceptions.PolarsError,
            pl.exceptions.PanicException,
        ) as error:
            raise DataError(
                f"column {name!r} of {self.name} has values of several types, or of a type that "
                f"cannot be read ({_first_line(error)}); convert it to one type"
            ) from None

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self.name} cannot be read: {_first_line(error)}; fix the table")


def table_frame(table: Any, name: str) -> pl.DataFrame:
    """Return all columns of a table in memory.

    Args:
        table: see ``is_table``.
        name: of the table in messages, such as "the table of items".

    Raises:
        DataError: the table cannot be read; the message names table and column.
    """
    reader = TableReader(table, name)
    return reader.frame(reader.columns)


def _pandas_series(column: Any) -> pl.Series:
    """Convert a column of pandas without pyarrow, which pandas needs for the Arrow interface."""
    dtype, is_missing = column.dtype, column.isna().to_numpy()
    if hasattr(column, "cat"):
        categories = _pandas_series(column.cat.categories.to_series())
        codes = pl.Series(column.cat.codes.to_numpy(), dtype=pl.Int64)
        return categories.gather(codes.set(pl.Series(codes < 0), None))
    if getattr(dtype, "tz", None) is not None:
        times = column.dt.tz_convert("UTC").dt.tz_localize(None)
        return pl.Series(times.to_numpy()).dt.replace_time_zone("UTC")
    if isinstance(dtype, np.dtype) and dtype.kind != "O":
        return pl.Series(column.to_numpy())
    numeric = getattr(dtype, "numpy_dtype", None)
    if isinstance(numeric, np.dtype) and numeric.kind in "biuf":
        # A nullable type: values beside a mask.
        values = pl.Series(column.to_numpy(dtype=numeric, na_value=numeric.type(0)))
        return values.set(pl.Series(is_missing), None)
    members = column.astype(object).where(~is_missing, None).tolist()
    if any(isinstance(value, np.ndarray) for value in members):
        members = [m.tolist() if isinstance(m, np.ndarray) else m for m in members]
    return pl.Series(members, strict=True)


def _is_of(data: object, package: str) -> bool:
    return type(data).__module__.split(".")[0] == package


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
