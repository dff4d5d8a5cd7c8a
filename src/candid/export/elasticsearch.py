"""Item vectors for Elasticsearch: a mapping with inner products, and bulk requests."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import polars as pl

from candid.atomic import write_json
from candid.errors import ConfigError
from candid.export.context import ExportContext
from candid.export.documents import json_lines, rows_per_file

REQUEST_MEGABYTES = 16
"""Size of a request; Elasticsearch accepts 100 by default."""
MAX_DIM = 4_096


def write_elasticsearch(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``index.json``, the body that creates the index, and ``bulk-00000.ndjson`` onwards.

    The ``_id`` of a document is the source id of its item.

    Raises:
        ConfigError: vectors wider than Elasticsearch accepts.
    """
    if context.dim > MAX_DIM:
        raise ConfigError(
            f"Elasticsearch accepts vectors of up to {MAX_DIM:,} numbers, and these have "
            f"{context.dim:,}; leave out --format elasticsearch"
        )
    properties = {
        name: _mapping(dtype)
        for name, dtype in context.schema.items()
        if name != context.vector_column
    }
    properties["title"] = {"type": "text"} if "title" in properties else None
    properties[context.vector_column] = {
        "type": "dense_vector",
        "dims": context.dim,
        "index": True,
        "similarity": "max_inner_product",
    }
    write_json(
        folder / "index.json",
        {
            "mappings": {
                "_meta": context.metadata,
                "properties": {name: field for name, field in properties.items() if field},
            }
        },
    )
    numbers, files = count(), ["index.json"]
    rows = rows_per_file(REQUEST_MEGABYTES, context.dim)
    for frame in context.frames(rows, "writing elasticsearch"):
        files.append(f"bulk-{next(numbers):05}.ndjson")
        document_id = pl.col("source_id").cast(pl.String).alias("_id")
        operations = json_lines(frame.select(pl.struct(document_id).alias("index")))
        documents = json_lines(frame)
        lines = pl.select(pl.concat_str([operations, documents], separator="\n")).to_series()
        (folder / files[-1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"files": files}


def _mapping(dtype: pl.DataType) -> dict[str, Any] | None:
    """Return the type of a field; None lets Elasticsearch choose it."""
    if isinstance(dtype, pl.List | pl.Array):  # every field may hold several values
        return _mapping(dtype.inner) if isinstance(dtype.inner, pl.DataType) else None
    if isinstance(dtype, pl.Date | pl.Datetime):
        return {"type": "date"}
    if dtype == pl.Boolean:
        return {"type": "boolean"}
    if dtype.is_integer():
        return {"type": "unsigned_long" if dtype == pl.UInt64 else "long"}
    if dtype.is_numeric():
        return {"type": "double"}
    return {"type": "keyword", "ignore_above": 8_191} if dtype == pl.String else None
