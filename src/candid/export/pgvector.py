"""Item vectors for PostgreSQL with pgvector: a file for COPY, and the SQL that loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from candid.errors import ConfigError, DataError
from candid.export.context import ExportContext
from candid.export.documents import json_lines, to_json_types

ROWS = 16_384
"""Rows written at a time."""
MAX_DIM = 16_000
MAX_INDEXED_DIM = 2_000
TABLE = "candid_items"

LOAD = """\
-- Loads the items of the run {run} into the table {table}:
--     psql -d DATABASE -f load.sql        in the folder of this file
-- in one transaction: a query at the same time sees the old table or the new one.
-- The nearest items of a query vector q, best first; <#> is the negative inner product:
--     SELECT source_id, ({vector} <#> q) * -1 AS score
--     FROM {table} ORDER BY {vector} <#> q LIMIT 10;
\\set ON_ERROR_STOP on
BEGIN;
CREATE EXTENSION IF NOT EXISTS vector;
DROP TABLE IF EXISTS {table}_new;
CREATE TABLE {table}_new (
{columns}
);
\\copy {table}_new FROM 'items.csv' WITH (FORMAT csv, HEADER true, ENCODING 'UTF8')
{index}COMMENT ON TABLE {table}_new IS {comment};
DROP TABLE IF EXISTS {table};
ALTER TABLE {table}_new RENAME TO {table};
{rename}COMMIT;
ANALYZE {table};
"""
INDEX = """\
CREATE INDEX {table}_new_vector ON {table}_new USING hnsw ({vector} vector_ip_ops);
"""
RENAME = """\
ALTER INDEX {table}_new_vector RENAME TO {table}_vector;
"""


def write_pgvector(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``items.csv`` and ``load.sql``.

    Raises:
        ConfigError: vectors wider than pgvector accepts.
        DataError: a text with a zero byte, which PostgreSQL does not accept.
    """
    if context.dim > MAX_DIM:
        raise ConfigError(
            f"pgvector accepts vectors of up to {MAX_DIM:,} numbers, and these have "
            f"{context.dim:,}; leave out --format pgvector"
        )
    with (folder / "items.csv").open("wb") as file:
        for number, frame in enumerate(context.frames(ROWS, "writing pgvector")):
            _to_copy_text(frame, context.vector_column).write_csv(file, include_header=number == 0)
    (folder / "load.sql").write_text(_sql(context), encoding="utf-8")
    return {"files": ["items.csv", "load.sql"], "table": TABLE}


def _sql(context: ExportContext) -> str:
    types = {name: _sql_type(dtype) for name, dtype in context.schema.items()}
    types["source_id"] += " PRIMARY KEY"
    types[context.vector_column] = f"vector({context.dim}) NOT NULL"
    vector = _identifier(context.vector_column)
    has_index = context.dim <= MAX_INDEXED_DIM
    too_wide = f"-- No index: pgvector indexes vectors of up to {MAX_INDEXED_DIM:,} numbers.\n"
    comment = ", ".join(f"{name}: {value}" for name, value in context.metadata.items())
    return LOAD.format(
        table=TABLE,
        run=context.export_input.name.replace("\n", " "),
        columns=",\n".join(
            f"    {_identifier(name)} {sql_type}" for name, sql_type in types.items()
        ),
        vector=vector,
        index=INDEX.format(table=TABLE, vector=vector) if has_index else too_wide,
        rename=RENAME.format(table=TABLE) if has_index else "",
        comment="'" + comment.replace("'", "''") + "'",
    )


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql_type(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        is_flat = isinstance(inner, pl.DataType) and not inner.is_nested()
        return f"{_sql_type(inner)}[]" if is_flat else "jsonb"  # type: ignore[arg-type]
    if isinstance(dtype, pl.Datetime):
        return "timestamp" if dtype.time_zone is None else "timestamptz"
    if dtype.is_nested():
        return "jsonb"
    if dtype.is_integer():
        return "numeric(20)" if dtype == pl.UInt64 else "bigint"
    if dtype.is_float():
        return "real" if dtype == pl.Float32 else "double precision"
    if isinstance(dtype, pl.Decimal):
        return "numeric"
    return {pl.Boolean: "boolean", pl.Date: "date"}.get(type(dtype), "text")


def _to_copy_text(frame: pl.DataFrame, vector: str) -> pl.DataFrame:
    """Return the columns as COPY reads them: null as an empty field, empty text as a quoted one."""
    texts: list[pl.Expr | pl.Series] = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if name == vector:
            members = column.arr.to_list().list.eval(pl.element().cast(pl.String))
            texts.append(pl.format("[{}]", members.list.join(",")).alias(name))
        elif isinstance(dtype, pl.List | pl.Array) and _sql_type(dtype) != "jsonb":
            texts.append(_array_literals(frame[name]))
        elif dtype.is_nested():
            texts.append(_json_texts(frame[name]))
        elif isinstance(dtype, pl.Datetime):
            texts.append(to_json_types(frame.select(column)).to_series())
    text_frame = frame.with_columns(texts)
    for series in text_frame:
        if series.dtype == pl.String and series.str.contains("\0", literal=True).any():
            raise DataError(
                f"column {series.name!r} of the items has a text with a zero byte, which "
                "PostgreSQL does not accept; remove it, or leave out --format pgvector"
            )
    return text_frame


def _json_texts(column: pl.Series) -> pl.Series:
    texts = json_lines(pl.DataFrame({"value": column})).str.strip_prefix('{"value":')
    return texts.str.strip_suffix("}").set(column.is_null(), None).alias(column.name)


def _array_literals(column: pl.Series) -> pl.Series:
    """Return lists as array literals: {"a","b"}, with NULL for a missing member."""
    lists = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
    member = pl.element().cast(pl.String).str.replace_all(r'(["\\])', r"\${1}")
    quoted = pl.concat_str([pl.lit('"'), member, pl.lit('"')])
    is_null = pl.element().is_null()
    inner = lists.list.eval(pl.when(is_null).then(pl.lit("NULL")).otherwise(quoted)).list.join(",")
    literal = pl.select(pl.concat_str([pl.lit("{"), inner, pl.lit("}")])).to_series()
    return literal.alias(column.name)
