"""Rows of the interactions, checked and typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from candid.data import source_ids, times
from candid.data.columns import IDS, NAMES, RawTable, parse_ids
from candid.data.config import DataConfig
from candid.data.list_columns import ROW
from candid.data.readers import check_lines
from candid.errors import DataError

LATE = ("time", "order", "role", "negatives")
"""Columns that may have empty values; they are checked after filtering, or not at all."""
Survey = dict[str, Any]


@dataclass(frozen=True)
class ParsedRows:
    """The rows to keep, typed, with counts and properties of the files.

    Attributes:
        query: columns user, item (Int64, UInt64 or String), time (Int64 microseconds), order
            (Int64, UInt64, Float64 or Datetime), weight (Float32), role and event_type (String),
            negatives (lists of item ids as in the source); those that the config names.
        columns: the columns of ``query`` as expressions over the files.
        rows_read: rows of the files.
        num_rows: interactions in them: the same, or the elements of lists.
        dropped: ``nulls`` and ``low_rating`` -> number of interactions that the query leaves out;
            ``empty_lists`` -> number of rows of the files without an interaction.
        dates_as_text: those of time and order that contain dates as text; a few texts among
            numbers are errors.
        time_unit: form of times that are numbers, key of ``times.UNITS`` or ``times.CALENDAR``;
            None without times, and for dates.
    """

    query: pl.LazyFrame
    columns: dict[str, pl.Expr]
    rows_read: int
    num_rows: int
    dropped: dict[str, int]
    dates_as_text: frozenset[str]
    time_unit: str | None


def parse_rows(table: RawTable, config: DataConfig) -> ParsedRows:
    """Check and convert every column, and leave out the rows that ``config`` excludes.

    Raises:
        DataError: there are no rows, or a value is invalid.
    """
    survey = _survey(table)
    rows = int(survey["rows"])
    if not rows and table.empty_lists:
        raise DataError(
            f"all lists of {config.origin} are empty; name other columns in explode, or check "
            "the file"
        )
    if not rows:
        kind = "file" if config.query is None else "query"
        raise DataError(f"{table.sources[0].path} has no rows; check the {kind}")
    for name, column in table.columns.items():
        if survey[f"{name}_nulls"] and name not in LATE and not config.drop_nulls:
            check_lines(table.sources)
            raise DataError(
                f"column {column!r} has {survey[f'{name}_nulls']:,} empty values, first in "
                f"{table.locate(pl.col(name).is_null(), name)}; fill them or set drop_nulls"
            )
    unit = _time_unit(table, survey)
    parsed = {name: _parse(table, name, survey, unit) for name in table.columns}
    _check_weights(table, parsed.get("weight"))
    complete = pl.lit(True)
    if config.drop_nulls:
        optional = ("role", "negatives")
        complete = pl.all_horizontal(
            pl.col(name).is_not_null() for name in table.columns if name not in optional
        )
    query = table.frame.filter(complete).with_columns(e.alias(n) for n, e in parsed.items())
    remaining = rows
    dropped = {"empty_lists": table.empty_lists}
    if config.drop_nulls:
        remaining = _count(table, query)
        dropped["nulls"] = rows - remaining
    if config.min_rating is not None:
        query = query.filter(pl.col("rating") >= config.min_rating)
        dropped["low_rating"] = remaining - _count(table, query)
    return ParsedRows(
        query.drop("rating", ROW, strict=False),
        parsed,
        table.rows_read if table.is_exploded else rows,
        rows,
        {reason: count for reason, count in dropped.items() if count},
        frozenset(name for name in ("time", "order") if _is_text(survey, name)),
        unit,
    )


def _num_rows() -> pl.Expr:
    # A sum of Int64: a count of rows has 32 bits.
    user = pl.col("user").is_null()
    return user.cast(pl.Int64).sum() + (~user).cast(pl.Int64).sum()


def _count(table: RawTable, query: pl.LazyFrame) -> int:
    return int(table.run(query.select(_num_rows())).item())


def _survey(table: RawTable) -> Survey:
    """Collect, in one pass over the files, the statistics that select how columns are parsed."""
    statistics = [_num_rows().alias("rows")]

    def add(name: str, expressions: dict[str, pl.Expr]) -> None:
        statistics.extend(e.alias(f"{name}_{key}") for key, e in expressions.items())

    # Columns of their own, so that each is computed once for all statistics that read it.
    shared: dict[str, pl.Expr] = {}
    for name, dtype in table.schema.items():
        value = pl.col(name)
        add(name, {"nulls": value.null_count()})
        is_text = dtype == pl.String and name not in NAMES
        if name in IDS:
            add(name, source_ids.statistics(value, dtype))
            continue
        if is_text or (name == "time" and dtype.is_numeric()):
            shared[f"_{name}_number"] = times.to_number(value)
        if is_text:
            number = value.cast(pl.Float64, strict=False)
            integer = value.cast(pl.Int64, strict=False).cast(pl.String)
            is_integer = (integer == value).fill_null(value.is_null()).all()
            is_wrong = number.is_null() & value.is_not_null()
            add(name, {"is_integer": is_integer, "not_number": is_wrong.sum()})
            if name in ("time", "order"):
                shared[f"_{name}_text"] = times.normalize_text(value)
                add(name, times.text_statistics(pl.col(f"_{name}_text")))
        if name == "time" and "_time_number" in shared:
            add(name, times.number_statistics(pl.col("_time_number")))
    frame = table.frame.with_columns(**shared)
    return table.run(frame.select(statistics)).row(0, named=True)


def _is_text(survey: Survey, name: str) -> bool:
    """Whether most values are text other than numbers; a number among them is then an error."""
    num_values = survey["rows"] - survey.get(f"{name}_nulls", 0)
    return bool(2 * survey.get(f"{name}_not_number", 0) > num_values)


def _time_unit(table: RawTable, survey: Survey) -> str | None:
    """Return the form of times that are numbers.

    Raises:
        DataError: the times have two units.
    """
    if "time_numbers" not in survey or _is_text(survey, "time"):
        return None
    units = times.units_of({key.removeprefix("time_"): n for key, n in survey.items()})
    if len(units) > 1:
        first, second = (
            table.locate(times.is_of_unit(pl.col("time"), unit), "time")
            for unit in (units[0], units[-1])
        )
        raise DataError(
            f"column {table.columns['time']!r} has times in two units, {units[0]} in {first} and "
            f"{units[-1]} in {second}; use one unit in all rows, and leave an unknown time empty"
        )
    return units[0]


def _parse(table: RawTable, name: str, survey: Survey, unit: str | None) -> pl.Expr:
    value, dtype = pl.col(name), table.schema[name]
    if name in NAMES or name == "negatives":
        return value
    if name in IDS:
        found = {key.removeprefix(f"{name}_"): n for key, n in survey.items()}
        return parse_ids(table, name, found)
    if name in ("time", "order") and dtype == pl.String and _is_text(survey, name):
        return times.from_text(value, survey[f"{name}_lengths"], offsets=survey[f"{name}_offsets"])
    if name == "time":
        if isinstance(dtype, pl.Datetime):
            return value.to_physical()
        assert unit is not None
        return times.from_number(value, unit)
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
