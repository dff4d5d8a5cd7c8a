"""The columns of the source files, renamed to candid's names, checked and typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from candid.data import times
from candid.data.config import DataConfig
from candid.data.readers import Source, check_lines, collect, columns_of, require_columns
from candid.errors import DataError

NAMES = ("role", "event_type")
"""Columns of names, which may be written as numbers."""
LATE = ("time", "order", "role", "negatives")
"""Columns that may have empty values; they are checked after filtering, or not at all."""


@dataclass(frozen=True)
class RawTable:
    """Interactions with columns under candid's names.

    Attributes:
        sources: the files, each scanned under candid's names.
        columns: candid's name -> name in the files.
        schema: type of each column; text for formats that have only text.
    """

    sources: list[Source]
    columns: dict[str, str]
    schema: dict[str, pl.DataType]

    @property
    def frame(self) -> pl.LazyFrame:
        """All files, concatenated."""
        return pl.concat([source.frame for source in self.sources])

    def run(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Collect a query over ``frame``; a damaged file becomes a ``DataError``."""
        return collect(query, self.sources)

    def locate(self, condition: pl.Expr, name: str) -> str:
        """Describe the first row that meets ``condition``, with its value in ``name``.

        Raises:
            LookupError: there is no such row.
        """
        for source in self.sources:
            rows = source.frame.with_row_index("_row").filter(condition).head(1)
            first = collect(rows.select("_row", name), [source])
            if first.height:
                row, value = first.row(0)
                example = "" if value is None else f" ({value!r})"
                return f"{source.location(row)}{example}"
        raise LookupError(f"no row of column {name!r} meets the condition")


def select_columns(sources: Sequence[Source], config: DataConfig) -> RawTable:
    """Select and rename the columns that ``config`` names.

    Raises:
        DataError: a column is missing or has an unsupported type.
    """
    columns = config.columns
    schema: dict[str, pl.DataType] = {}
    renamed = []
    for source in sources:
        require_columns(source, columns.values())
        types = columns_of(source)
        expressions = []
        for name, column in columns.items():
            expression, dtype = _typed(name, column, types[column], source)
            if schema.setdefault(name, dtype) != dtype:
                raise DataError(
                    f"column {column!r} is {dtype} in {source.path} and {schema[name]} in "
                    f"{sources[0].path}; give it one type in all files"
                )
            expressions.append(expression.alias(name))
        renamed.append(replace(source, frame=source.frame.select(expressions)))
    return RawTable(renamed, columns, schema)


def _typed(
    name: str, column: str, dtype: pl.DataType, source: Source
) -> tuple[pl.Expr, pl.DataType]:
    """Widen to one of Int64, UInt64, Float64, String or Datetime, or raise."""
    value = pl.col(column)
    if name == "negatives":
        return _list_of_ids(value, dtype, f"column {column!r} of {source.path}")
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return value.cast(pl.String), pl.String()
    if isinstance(dtype, pl.String):
        # Text formats write a missing value as an empty field.
        return pl.when(value != "").then(value), pl.String()
    if name in NAMES and (dtype.is_integer() or dtype == pl.Boolean):
        return value.cast(pl.String), pl.String()
    if dtype == pl.UInt64:
        return value, pl.UInt64()
    if dtype.is_integer():
        return value.cast(pl.Int64), pl.Int64()
    if name not in ("user", "item", *NAMES) and (dtype.is_float() or dtype.is_decimal()):
        number = value.cast(pl.Float64)
        return number if name == "weight" else number.fill_nan(None), pl.Float64()
    if name in ("time", "order") and isinstance(dtype, pl.Datetime | pl.Date):
        return times.as_utc(value, dtype), pl.Datetime("us")
    expected = dict.fromkeys(("user", "item"), "integer or text")
    expected |= dict.fromkeys(NAMES, "text or integer") | {"time": "a date, a number or text"}
    raise DataError(
        f"column {column!r} of {source.path} must be {expected.get(name, 'a number')}, got "
        f"{dtype}; convert it or name another column"
    )


def _list_of_ids(value: pl.Expr, dtype: pl.DataType, origin: str) -> tuple[pl.Expr, pl.DataType]:
    if isinstance(dtype, pl.String):
        words = value.str.split(" ")
        return words.list.filter(pl.element() != ""), pl.List(pl.String())
    if isinstance(dtype, pl.Null):
        return value.cast(pl.List(pl.String())), pl.List(pl.String())
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    if isinstance(inner, pl.String | pl.Categorical | pl.Enum | pl.Null):
        texts = value.cast(pl.List(pl.String()))
        return texts.list.filter(pl.element() != ""), pl.List(pl.String())
    if inner is not None and inner.is_integer():
        wide = pl.UInt64() if inner == pl.UInt64 else pl.Int64()
        return value.cast(pl.List(wide)), pl.List(wide)
    raise DataError(
        f"{origin} must be lists of integers or text, got {dtype}; convert it or name another "
        "column"
    )


@dataclass(frozen=True)
class ParsedRows:
    """The rows to keep, typed, with counts and properties of the files.

    Attributes:
        query: columns user, item (Int64, UInt64 or String), time (Int64 microseconds), order
            (Int64, Float64 or Datetime), weight (Float32), role and event_type (String), negatives
            (lists of item ids as in the source); those that the config names.
        rows_read: rows of the files.
        dropped: ``nulls`` and ``low_rating`` -> number of rows that the query leaves out.
        time_is_text: whether the time column contains dates as text; a few texts among numbers
            are errors.
    """

    query: pl.LazyFrame
    rows_read: int
    dropped: dict[str, int]
    time_is_text: bool


def parse_rows(table: RawTable, config: DataConfig) -> ParsedRows:
    """Check and convert every column, and leave out the rows that ``config`` excludes.

    Raises:
        DataError: there are no rows, or a value is invalid.
    """
    survey = _survey(table)
    if not survey["rows"]:
        raise DataError(f"{table.sources[0].path} has no rows; check the file")
    for name, column in table.columns.items():
        if survey[f"{name}_nulls"] and name not in LATE and not config.drop_nulls:
            check_lines(table.sources)
            raise DataError(
                f"column {column!r} has {survey[f'{name}_nulls']:,} empty values, first in "
                f"{table.locate(pl.col(name).is_null(), name)}; fill them or set drop_nulls"
            )
    parsed = {name: _parse(table, name, survey) for name in table.columns}
    _check_weights(table, parsed.get("weight"))
    complete = pl.lit(True)
    if config.drop_nulls:
        optional = ("role", "negatives")
        complete = pl.all_horizontal(
            pl.col(name).is_not_null() for name in table.columns if name not in optional
        )
    query = table.frame.filter(complete).with_columns(e.alias(n) for n, e in parsed.items())
    rows = remaining = int(survey["rows"])
    dropped = {}
    if config.drop_nulls:
        remaining = table.run(query.select(pl.len())).item()
        dropped["nulls"] = rows - remaining
    if config.min_rating is not None:
        query = query.filter(pl.col("rating") >= config.min_rating)
        dropped["low_rating"] = remaining - table.run(query.select(pl.len())).item()
    return ParsedRows(
        query.drop("rating", strict=False),
        rows,
        {reason: count for reason, count in dropped.items() if count},
        _time_is_text(survey),
    )


def _survey(table: RawTable) -> dict[str, Any]:
    """Collect, in one pass over the files, the statistics that select how columns are parsed."""
    statistics = [pl.len().alias("rows")]
    for name, dtype in table.schema.items():
        value = pl.col(name)
        statistics.append(value.null_count().alias(f"{name}_nulls"))
        if dtype == pl.String and name not in NAMES:
            integer = value.cast(pl.Int64, strict=False)
            statistics.append(
                (integer.cast(pl.String) == value)
                .fill_null(value.is_null())
                .all()
                .alias(f"{name}_is_integer")
            )
            number = value.cast(pl.Float64, strict=False)
            is_wrong = number.is_null() & value.is_not_null()
            statistics.append(is_wrong.sum().alias(f"{name}_not_number"))
            if name == "time":
                statistics.append(number.abs().max().alias("time_largest"))
                lengths = times.normalize_text(value).str.len_bytes().unique()
                statistics.append(lengths.drop_nulls().implode().alias("time_lengths"))
        elif name == "time" and dtype.is_numeric():
            statistics.append(value.cast(pl.Float64).abs().max().alias("time_largest"))
    return table.run(table.frame.select(statistics)).row(0, named=True)


def _time_is_text(survey: dict[str, Any]) -> bool:
    """Whether most times are text other than numbers; a number among them is then an error."""
    num_times = survey["rows"] - survey.get("time_nulls", 0)
    return bool(2 * survey.get("time_not_number", 0) > num_times)


def _parse(table: RawTable, name: str, survey: dict[str, Any]) -> pl.Expr:
    value, dtype = pl.col(name), table.schema[name]
    if name in NAMES or name == "negatives":
        return value
    if name in ("user", "item"):
        return value.cast(pl.Int64) if survey.get(f"{name}_is_integer") else value
    if name == "time":
        if dtype == pl.String and _time_is_text(survey):
            return times.from_text(value, survey["time_lengths"])
        if isinstance(dtype, pl.Datetime):
            return value.to_physical()
        return times.from_number(value, float(survey["time_largest"] or 0))
    if dtype == pl.String:
        if survey[f"{name}_is_integer"] and name == "order":
            return value.cast(pl.Int64)
        number = value.cast(pl.Float64, strict=False)
        if survey[f"{name}_not_number"]:
            is_wrong = number.is_null() & value.is_not_null()
            raise DataError(
                f"column {table.columns[name]!r} has {survey[f'{name}_not_number']:,} values that "
                f"are not numbers, first in {table.locate(is_wrong, name)}; fix them"
            )
        value = number if name == "weight" else number.fill_nan(None)
    return value.cast(pl.Float32) if name == "weight" else value


def _check_weights(table: RawTable, weight: pl.Expr | None) -> None:
    if weight is None:
        return
    is_wrong = ~(weight.is_finite() & (weight >= 0))
    count = table.run(table.frame.select(is_wrong.sum())).item()
    if count:
        raise DataError(
            f"column {table.columns['weight']!r} has {count:,} weights that are negative or not "
            f"finite, first in {table.locate(is_wrong, 'weight')}; fix or remove these rows"
        )
