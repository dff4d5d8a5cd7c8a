"""From the columns of the user's files to the columns candid knows, checked and typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from candid.data import times
from candid.data.config import DataConfig
from candid.data.readers import Source, check_lines, collect, columns_of, require_columns
from candid.errors import DataError

NUMBERS = ("order", "weight", "rating")
NAMES = ("role", "event_type")
"""Columns whose values are names, even where they are written as numbers."""
LATE = ("time", "order", "role", "negatives")
"""Columns that may have empty values: judged after filtering, or none at all."""


@dataclass(frozen=True)
class RawTable:
    """Interactions under candid's names (``RawTable.columns`` lists them).

    Attributes:
        sources: the files, each scanned under candid's names.
        columns: candid's name -> the name in the files.
        schema: type of each column; text where the format has only text.
    """

    sources: list[Source]
    columns: dict[str, str]
    schema: dict[str, pl.DataType]

    @property
    def frame(self) -> pl.LazyFrame:
        """All files, one after the other."""
        return pl.concat([source.frame for source in self.sources])

    def run(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Collect a query over ``frame``; a damaged file becomes a ``DataError``."""
        return collect(query, self.sources)

    def first(self, bad: pl.Expr, name: str) -> str:
        """Say where the first row that meets ``bad`` is and what it holds in ``name``."""
        for source in self.sources:
            rows = source.frame.with_row_index("_row").filter(bad).head(1)
            found = collect(rows.select("_row", name), [source])
            if found.height:
                row, value = found.row(0)
                shown = "" if value is None else f" ({value!r})"
                return f"{source.place(row)}{shown}"
        raise LookupError(f"no row of column {name!r} is at fault")


def declare(sources: Sequence[Source], config: DataConfig) -> RawTable:
    """Pick and rename the columns that ``config`` names.

    Raises:
        DataError: a column is missing or of a type that cannot serve.
    """
    wanted = {
        "user": config.user,
        "item": config.item,
        "time": config.time,
        "order": config.order,
        "weight": config.weight,
        "rating": config.rating,
        "role": config.split.column,
        "event_type": config.event_type,
        "negatives": config.negatives,
    }
    columns = {name: column for name, column in wanted.items() if column is not None}
    schema: dict[str, pl.DataType] = {}
    declared = []
    for source in sources:
        require_columns(source, columns.values())
        types = columns_of(source)
        picked = []
        for name, column in columns.items():
            expression, dtype = _typed(name, column, types[column], source)
            if schema.setdefault(name, dtype) != dtype:
                raise DataError(
                    f"column {column!r} is {dtype} in {source.path} and {schema[name]} in "
                    f"{sources[0].path}; give it one type in all files"
                )
            picked.append(expression.alias(name))
        frame = source.frame.select(picked)
        declared.append(replace(source, frame=frame))
    return RawTable(declared, columns, schema)


def _typed(
    name: str, column: str, dtype: pl.DataType, source: Source
) -> tuple[pl.Expr, pl.DataType]:
    """Widen to one of Int64, UInt64, Float64, String or Datetime, else refuse."""
    value = pl.col(column)
    if name == "negatives":
        return _list_of_ids(value, dtype, f"column {column!r} of {source.path}")
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return value.cast(pl.String), pl.String()
    if isinstance(dtype, pl.String):
        # Text formats write a missing value as nothing between two separators.
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
    needs = dict.fromkeys(("user", "item"), "integer or text")
    needs |= dict.fromkeys(NAMES, "text or integer")
    raise DataError(
        f"column {column!r} of {source.path} has type {dtype}, not "
        f"{needs.get(name, 'a date, a number or text' if name == 'time' else 'a number')}; "
        "convert it or name another column"
    )


def _list_of_ids(value: pl.Expr, dtype: pl.DataType, place: str) -> tuple[pl.Expr, pl.DataType]:
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
        f"{place} has type {dtype}, not lists of integers or text; convert it or name another "
        "column"
    )


@dataclass(frozen=True)
class Parsed:
    """The rows to keep, typed, and what the survey of the files found.

    Attributes:
        query: columns user, item (Int64, UInt64 or String), time (Int64 microseconds), order
            (Int64, Float64 or Datetime), weight (Float32), role and event_type (String), negatives
            (lists of item ids as in the source), as far as declared.
        rows_read: rows of the files.
        dropped: ``nulls`` and ``low_rating`` -> rows that the query leaves out.
        time_is_text: the time column holds dates as text; a few among numbers are mistakes.
    """

    query: pl.LazyFrame
    rows_read: int
    dropped: dict[str, int]
    time_is_text: bool


def parse(table: RawTable, config: DataConfig) -> Parsed:
    """Check every column, convert it, and leave out the rows that ``config`` does not want.

    Raises:
        DataError: no rows, or a value that cannot be used.
    """
    survey = _survey(table)
    if not survey["rows"]:
        raise DataError(f"{table.sources[0].path} has no rows")
    for name, column in table.columns.items():
        if survey[f"{name}_nulls"] and name not in LATE and not config.drop_nulls:
            check_lines(table.sources)
            raise DataError(
                f"column {column!r} has {survey[f'{name}_nulls']:,} empty values, first in "
                f"{table.first(pl.col(name).is_null(), name)}; fill them or set drop_nulls"
            )
    parsed = {name: _parsed(table, name, survey) for name in table.columns}
    _check_weights(table, parsed.get("weight"))
    complete = pl.lit(True)
    if config.drop_nulls:
        optional = ("role", "negatives")
        complete = pl.all_horizontal(
            pl.col(name).is_not_null() for name in table.columns if name not in optional
        )
    query = table.frame.filter(complete).with_columns(e.alias(n) for n, e in parsed.items())
    rows = left = int(survey["rows"])
    dropped = {}
    if config.drop_nulls:
        left = table.run(query.select(pl.len())).item()
        dropped["nulls"] = rows - left
    if config.min_rating is not None:
        query = query.filter(pl.col("rating") >= config.min_rating)
        dropped["low_rating"] = left - table.run(query.select(pl.len())).item()
    return Parsed(
        query.drop("rating", strict=False),
        rows,
        {reason: count for reason, count in dropped.items() if count},
        _is_text(survey),
    )


def _survey(table: RawTable) -> dict[str, Any]:
    """One pass over the files for everything that decides how columns are read."""
    facts = [pl.len().alias("rows")]
    for name, dtype in table.schema.items():
        value = pl.col(name)
        facts.append(value.null_count().alias(f"{name}_nulls"))
        if dtype == pl.String and name not in NAMES:
            integer = value.cast(pl.Int64, strict=False)
            facts.append(
                (integer.cast(pl.String) == value)
                .fill_null(value.is_null())
                .all()
                .alias(f"{name}_is_integer")
            )
            number = value.cast(pl.Float64, strict=False)
            facts.append((number.is_null() & value.is_not_null()).sum().alias(f"{name}_not_number"))
            if name == "time":
                facts.append(number.abs().max().alias("time_largest"))
                lengths = times.plain_text(value).str.len_bytes().unique()
                facts.append(lengths.drop_nulls().implode().alias("time_lengths"))
        elif name == "time" and dtype.is_numeric():
            facts.append(value.cast(pl.Float64).abs().max().alias("time_largest"))
    return table.run(table.frame.select(facts)).row(0, named=True)


def _is_text(survey: dict[str, Any]) -> bool:
    """Whether most times are no numbers: the few others are then the ones to blame."""
    given = survey["rows"] - survey.get("time_nulls", 0)
    return bool(2 * survey.get("time_not_number", 0) > given)


def _parsed(table: RawTable, name: str, survey: dict[str, Any]) -> pl.Expr:
    value, dtype = pl.col(name), table.schema[name]
    if name in NAMES or name == "negatives":
        return value
    if name in ("user", "item"):
        return value.cast(pl.Int64) if survey.get(f"{name}_is_integer") else value
    if name == "time":
        if dtype == pl.String and _is_text(survey):
            return times.from_text(value, survey["time_lengths"])
        if isinstance(dtype, pl.Datetime):
            return value.to_physical()
        return times.from_number(value, float(survey["time_largest"] or 0))
    if dtype == pl.String:
        if survey[f"{name}_is_integer"] and name == "order":
            return value.cast(pl.Int64)
        number = value.cast(pl.Float64, strict=False)
        if survey[f"{name}_not_number"]:
            bad = number.is_null() & value.is_not_null()
            raise DataError(
                f"column {table.columns[name]!r} has {survey[f'{name}_not_number']:,} values that "
                f"are not numbers, first in {table.first(bad, name)}; repair them"
            )
        value = number if name == "weight" else number.fill_nan(None)
    return value.cast(pl.Float32) if name == "weight" else value


def _check_weights(table: RawTable, weight: pl.Expr | None) -> None:
    if weight is None:
        return
    bad = ~(weight.is_finite() & (weight >= 0))
    count = table.run(table.frame.select(bad.sum())).item()
    if count:
        raise DataError(
            f"column {table.columns['weight']!r} has {count:,} weights that are negative or not "
            f"finite, first in {table.first(bad, 'weight')}; repair or remove these rows"
        )
