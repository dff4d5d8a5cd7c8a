"""Item vectors for Elasticsearch: a mapping with inner products, and bulk requests."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from candid.atomic import write_json
from candid.errors import ConfigError
from candid.export.documents import json_lines, rows_of

if TYPE_CHECKING:
    from candid.export.material import Material

MEGABYTES = 16
"""Of a request; Elasticsearch takes 100 unless it is told otherwise."""
WIDEST = 4_096


def write_elasticsearch(material: Material, folder: Path) -> dict[str, Any]:
    """Write ``index.json``, the body that makes the index, and ``bulk-00000.ndjson`` onwards.

    The ``_id`` of a document is the source id of its item.

    Raises:
        ConfigError: vectors wider than Elasticsearch holds.
    """
    if material.dim > WIDEST:
        raise ConfigError(
            f"Elasticsearch holds vectors of up to {WIDEST:,} numbers, and these have "
            f"{material.dim:,}: leave out --format elasticsearch"
        )
    properties = {
        name: _mapping(dtype)
        for name, dtype in material.schema.items()
        if name != material.vector_column
    }
    properties["title"] = {"type": "text"} if "title" in properties else None
    properties[material.vector_column] = {
        "type": "dense_vector",
        "dims": material.dim,
        "index": True,
        "similarity": "max_inner_product",
    }
    write_json(
        folder / "index.json",
        {
            "mappings": {
                "_meta": material.facts,
                "properties": {name: found for name, found in properties.items() if found},
            }
        },
    )
    numbers, files = count(), ["index.json"]
    for frame in material.frames(rows_of(MEGABYTES, material.dim), "writing elasticsearch"):
        files.append(f"bulk-{next(numbers):05}.ndjson")
        name = pl.col("source_id").cast(pl.String).alias("_id")
        event_types = json_lines(frame.select(pl.struct(name).alias("index")))
        documents = json_lines(frame)
        lines = pl.select(pl.concat_str([event_types, documents], separator="\n")).to_series()
        (folder / files[-1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"files": files}


def _mapping(dtype: pl.DataType) -> dict[str, Any] | None:
    """The type of a field; None leaves it to Elasticsearch."""
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
