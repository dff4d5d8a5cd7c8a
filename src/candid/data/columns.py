"""The columns of the source files, renamed to candid's names, checked and typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from candid.data import source_ids, times
from candid.data.config import DataConfig
from candid.data.list_columns import ROW, check_texts, explode, parse_list
from candid.data.order_columns import require_order
from candid.data.readers import Source, collect, columns_of, require_columns
from candid.data.sorted_input import check_not_a_column
from candid.errors import DataError

IDS = ("user", "item")
NAMES = ("role", "event_type")
"""Columns of names, which may be written as numbers."""


@dataclass(frozen=True)
class RawTable:
    """Interactions with columns under candid's names.

    Attributes:
        sources: the files, each scanned under candid's names.
        columns: candid's name -> name in the files.
        schema: type of each column; text for formats that have only text.
        is_exploded: whether one row of a file can be several rows here; the number of the row is
            then in the column ``ROW``.
        rows_read: rows of the files, where one can be several rows here.
        empty_lists: rows of the files that give no row here.
    """

    sources: list[Source]
    columns: dict[str, str]
    schema: dict[str, pl.DataType]
    is_exploded: bool = False
    rows_read: int = 0
    empty_lists: int = 0

    @property
    def frame(self) -> pl.LazyFrame:
        """All files, concatenated."""
        frames = [source.frame for source in self.sources]
        return pl.concat(frames, how="vertical_relaxed")

    def run(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Collect a query over ``frame``; a damaged file becomes a ``DataError``."""
        return collect(query, self.sources)

    def locate(self, condition: pl.Expr, name: str) -> str:
        """Describe the first row that meets ``condition``, with its value in ``name``.

        Raises:
            LookupError: there is no such row.
        """
        for source in self.sources:
            rows = source.frame if self.is_exploded else source.frame.with_row_index(ROW)
            first = collect(rows.filter(condition).head(1).select(ROW, name), [source])
            if first.height:
                row, value = first.row(0)
                example = "" if value is None else f" ({value!r})"
                return f"{source.location(row)}{example}"
        raise LookupError(f"no row of column {name!r} meets the condition")


def select_columns(sources: Sequence[Source], config: DataConfig) -> RawTable:
    """Select and rename the columns that ``config`` names.

    Raises:
        ConfigError: the split needs a time or an order that ``config`` does not name, or
            ``order`` is ambiguous.
        DataError: a column is missing or has an unsupported type.
    """
    require_order(sources, config)
    check_not_a_column(sources, config)
    columns = config.columns
    schema: dict[str, pl.DataType] = {}
    renamed = []
    rows_read = empty_lists = 0
    for source in sources:
        require_columns(source, [*columns.values(), *config.explode])
        if config.explode:
            exploded = explode(source, config.explode)
            source = exploded.source
            rows_read += exploded.rows_read
            empty_lists += exploded.empty_lists
        types = columns_of(source)
        expressions = [pl.col(ROW)] if config.explode else []
        for name, column in columns.items():
            if name == "negatives" and isinstance(types[column], pl.String):
                check_texts(source, column)
            expression, dtype = _typed(name, column, types[column], source)
            if schema.setdefault(name, dtype) != dtype:
                raise DataError(
                    f"column {column!r} is {dtype} in {source.path} and {schema[name]} in "
                    f"{sources[0].path}; give it one type in all files"
                )
            expressions.append(expression.alias(name))
        renamed.append(replace(source, frame=source.frame.select(expressions)))
    return RawTable(renamed, columns, schema, bool(config.explode), rows_read, empty_lists)


def parse_ids(table: RawTable, name: str, found: Mapping[str, Any]) -> pl.Expr:
    """Return the column ``name`` of ids as Int64, UInt64 or String.

    Args:
        table: with the column, widened by ``source_ids.widen``.
        name: column of ``table``.
        found: values of ``source_ids.statistics`` over the column.

    Raises:
        DataError: a value cannot be an id.
    """
    value, dtype = pl.col(name), table.schema[name]
    if found.get("is_number") and not found["is_integer"]:
        further = source_ids.text_statistics(value)
        found = {**found, **table.run(table.frame.select(**further)).row(0, named=True)}
    ids = source_ids.parse(value, dtype, found)
    if not source_ids.is_certain(dtype, found):
        is_wrong = ids.is_null() & value.is_not_null()
        count = table.run(table.frame.select(is_wrong.sum())).item()
        if count:
            fault, advice = source_ids.describe_fault(dtype)
            raise DataError(
                f"column {table.columns[name]!r} has {count:,} {fault}, first in "
                f"{table.locate(is_wrong, name)}; {advice}"
            )
    return ids


def _typed(
    name: str, column: str, dtype: pl.DataType, source: Source
) -> tuple[pl.Expr, pl.DataType]:
    """Widen to Int64, UInt64, a float, String or Datetime, or raise."""
    value = pl.col(column)
    if name == "negatives":
        return _list_of_ids(value, dtype, f"column {column!r} of {source.path}")
    ids = source_ids.widen(value, dtype)
    if name in IDS and ids is not None:
        return ids
    if name in NAMES and (dtype.is_integer() or dtype == pl.Boolean):
        return value.cast(pl.String), pl.String()
    if ids is not None and ids[1] in (pl.String, pl.Int64, pl.UInt64) and not dtype.is_decimal():
        return ids
    if name not in (*IDS, *NAMES) and dtype.is_numeric():
        number = value.cast(pl.Float64)
        return number if name == "weight" else number.fill_nan(None), pl.Float64()
    if name in ("time", "order") and isinstance(dtype, pl.Datetime | pl.Date):
        return times.as_utc(value, dtype), pl.Datetime("us")
    if isinstance(dtype, pl.List | pl.Array):
        raise DataError(
            f"column {column!r} of {source.path} is {dtype}; set explode = [{column!r}] "
            f"(--explode {column}) to make an interaction of each element"
        )
    expected = dict.fromkeys(IDS, "integer or text")
    expected |= dict.fromkeys(NAMES, "text or integer")
    expected |= dict.fromkeys(("time", "order"), "a date, a number or text")
    raise DataError(
        f"column {column!r} of {source.path} must be {expected.get(name, 'a number')}, got "
        f"{dtype}; convert it or name another column"
    )


def _list_of_ids(value: pl.Expr, dtype: pl.DataType, origin: str) -> tuple[pl.Expr, pl.DataType]:
    if isinstance(dtype, pl.String):
        return parse_list(value).list.filter(pl.element() != ""), pl.List(pl.String())
    if isinstance(dtype, pl.Null):
        return value.cast(pl.List(pl.String())), pl.List(pl.String())
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    # Integers of 128 bits become text, as ids of one value do: they may not fit 64 bits.
    if isinstance(inner, pl.String | pl.Categorical | pl.Enum | pl.Null | pl.Int128 | pl.UInt128):
        texts = value.cast(pl.List(pl.String()))
        return texts.list.filter(pl.element() != ""), pl.List(pl.String())
    if inner is not None and inner.is_integer():
        wide = pl.UInt64() if inner == pl.UInt64 else pl.Int64()
        return value.cast(pl.List(wide)), pl.List(wide)
    raise DataError(
        f"{origin} must be lists of integers or text, got {dtype}; convert it or name another "
        "column"
    )
