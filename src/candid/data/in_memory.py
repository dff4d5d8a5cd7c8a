"""Tables in memory as sources: Polars, pandas, and all tables with the Arrow interface."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from candid.data.readers import Source, check_columns
from candid.data.readers.files import (
    READ_ERRORS,
    disk_error,
    is_disk_full,
    is_out_of_memory,
    memory_error,
)
from candid.data.readers.panics import without_panic_messages
from candid.data.tables import storable_columns
from candid.errors import DataError

ARROW = ("__arrow_c_stream__", "__arrow_c_array__")
"""Methods of the Arrow PyCapsule interface: a stream of batches, and one batch."""
UNREADABLE = re.compile(
    r"(?:interval|union)(?=$|[<(\[\],>)])|(?:run_end_encoded|list_view)<|decimal256\(",
    re.IGNORECASE,
)
"""Types of Arrow and DuckDB, as they print themselves, that Polars refuses or panics at."""
FAULTS = (Exception, pl.exceptions.PanicException)
"""What reading a table of another library may raise; a panic of Polars is not an ``Exception``."""
POLARS_UNITS = (("ms", 1), ("us", 1), ("ns", 1))
"""Units of NumPy times that Polars has; seconds become milliseconds, as in a parquet file."""


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

    The table is not changed. A lazy frame is collected once, with the requested columns only; so
    is a relation of DuckDB. A table that can be read only once, such as a stream of Arrow batches,
    is read when this object is made.

    Args:
        table: see ``is_table``.
        name: of the table in messages, such as "the table of items".

    Raises:
        DataError: the table cannot be read.
    """

    def __init__(self, table: Any, name: str) -> None:
        self.name = name
        self._table = table
        if isinstance(table, pl.DataFrame | pl.LazyFrame):
            return
        if is_pandas(table):
            names = list(table.columns)
            if not all(isinstance(name, str) for name in names):
                # pandas also takes numbers and tuples as names.
                self._table = table.set_axis([str(name) for name in names], axis="columns")
            return
        try:
            if _is_of(table, "pyarrow") and hasattr(table, "read_all"):
                self._table = table.read_all()
            if _foreign_types(self._table) is None:
                self._table = pl.DataFrame(table)
        except FAULTS as error:
            raise self._unreadable(error) from error

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order."""
        if isinstance(self._table, pl.LazyFrame):
            try:
                return self._table.collect_schema().names()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._unreadable(error) from error
        types = _foreign_types(self._table)
        return list(self._table.columns) if types is None else [name for name, _ in types]

    def storable_columns(self) -> list[str]:
        """Return the names of the columns that can be attributes, in order."""
        names = self.columns
        if isinstance(self._table, pl.LazyFrame):
            return storable_columns(self._table.collect_schema())
        types = _foreign_types(self._table)
        if types is not None:
            names = [name for name, dtype in types if not UNREADABLE.search(dtype)]
        elif is_pandas(self._table):
            return [name for name in names if self._is_storable(name)]
        return storable_columns(self.frame(names).schema)

    def _is_storable(self, name: str) -> bool:
        try:
            return bool(storable_columns(self.frame([name]).schema))
        except DataError:
            return False

    def source(self, columns: Iterable[str]) -> Source:
        """Return the named columns as a source.

        Raises:
            DataError: the table has no columns or rows, a column is missing, or its values are of
                several types; the message names the table and the column.
        """
        names = list(dict.fromkeys(columns))
        known = self.columns
        if not known:
            raise DataError(f"{self.name} has no columns; check how it was made")
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
                with without_panic_messages():
                    return self._table.select(names).collect(engine="streaming")
            except READ_ERRORS as error:
                if is_out_of_memory(error):
                    raise memory_error(self.name) from error
                if is_disk_full(error):
                    raise disk_error(self.name) from error
                raise self._unreadable(error) from error
        if isinstance(self._table, pl.DataFrame):
            return self._table.select(names)
        types = _foreign_types(self._table)
        if types is not None:
            return self._from_foreign(names, types)
        return pl.DataFrame([self._from_pandas(name) for name in names])

    def _from_foreign(self, names: Sequence[str], types: Sequence[tuple[str, str]]) -> pl.DataFrame:
        for name in names:
            found = [dtype for known, dtype in types if known == name]
            if len(found) > 1:
                raise self._repeated(name)
            if UNREADABLE.search(found[0]):
                raise DataError(
                    f"column {name!r} of {self.name} has the type {found[0]}, which cannot be "
                    "read; convert it or leave it out"
                )
        try:
            if _is_of(self._table, "pyarrow"):
                return pl.DataFrame(self._table.select(list(names)))
            quoted = ('"' + name.replace('"', '""') + '"' for name in names)
            return pl.DataFrame(self._table.project(", ".join(quoted)))
        except FAULTS as error:
            raise self._unreadable(error) from error

    def _from_pandas(self, name: str) -> pl.Series:
        column = self._table[name]
        if hasattr(column, "columns"):
            raise self._repeated(name)
        try:
            values = _pandas_series(column).alias(name)
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
        if values.dtype == pl.Object:
            kind = type(values.drop_nulls()[0]).__name__
            raise DataError(
                f"column {name!r} of {self.name} holds Python objects of type {kind}; convert them "
                "to numbers, text or times, or leave the column out"
            )
        return values

    def _repeated(self, name: str) -> DataError:
        return DataError(f"{self.name} has several columns {name!r}; rename or remove all but one")

    def _unreadable(self, error: BaseException) -> DataError:
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
        values = categories.gather(codes.set(pl.Series(codes < 0), None))
        return values.cast(pl.Categorical) if values.dtype == pl.String else values
    zone = getattr(dtype, "tz", None)
    if zone is not None:
        times = _pandas_series(column.dt.tz_convert("UTC").dt.tz_localize(None))
        return _in_zone(times.dt.replace_time_zone("UTC"), str(zone))
    if isinstance(dtype, np.dtype) and dtype.kind != "O":
        array = column.to_numpy()
        if dtype.kind in "mM" and np.datetime_data(dtype) not in POLARS_UNITS:
            array = array.astype(f"{dtype.kind}8[ms]")
        return pl.Series(array)
    numeric = getattr(dtype, "numpy_dtype", None)
    if isinstance(numeric, np.dtype) and numeric.kind in "biuf":
        # A nullable type: values beside a mask.
        values = pl.Series(column.to_numpy(dtype=numeric, na_value=numeric.type(0)))
        return values.set(pl.Series(is_missing), None)
    members = column.astype(object).where(~is_missing, None).tolist()
    if any(isinstance(value, np.ndarray) for value in members):
        # Lists keep the type of their arrays: float32 does not become float64.
        types = {m.dtype for m in members if isinstance(m, np.ndarray)}
        if len(types) == 1 and all(m is None or np.ndim(m) == 1 for m in members):
            inner = pl.Series(np.empty(0, dtype=types.pop())).dtype
            if inner != pl.Object:
                members = [None if m is None else pl.Series(m) for m in members]
                return pl.Series(members, dtype=pl.List(inner))
        members = [m.tolist() if isinstance(m, np.ndarray) else m for m in members]
    if any(isinstance(value, uuid.UUID) for value in members):
        members = [str(m) if isinstance(m, uuid.UUID) else m for m in members]
    return pl.Series(members, strict=True)


def _in_zone(times: pl.Series, zone: str) -> pl.Series:
    """Convert times to a zone; they stay in UTC where Polars does not know it, as UTC+02:00."""
    try:
        return times.dt.convert_time_zone(zone)
    except pl.exceptions.PolarsError:
        return times


def _foreign_types(table: Any) -> list[tuple[str, str]] | None:
    """Return names and printed types of the columns of a table of pyarrow or DuckDB, else None.

    Polars cannot read all types; columns are therefore selected before they are converted.
    """
    if _is_of(table, "pyarrow") and hasattr(table, "select") and hasattr(table, "schema"):
        names, types = table.schema.names, table.schema.types
    elif _is_of(table, "duckdb", "_duckdb") and hasattr(table, "project"):
        names, types = table.columns, table.types
    else:
        return None
    return [(name, str(dtype)) for name, dtype in zip(names, types, strict=True)]


def _is_of(data: object, *packages: str) -> bool:
    return type(data).__module__.split(".")[0] in packages


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
