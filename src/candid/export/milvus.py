"""Item vectors for Milvus: a collection with inner products, and a parquet file to import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from candid.atomic import write_json
from candid.errors import ConfigError
from candid.export.documents import json_lines
from candid.export.parquet import ROWS, write_parquet

if TYPE_CHECKING:
    from candid.export.material import Material

COLLECTION = "candid_items"
WIDEST = 32_768
LONGEST = 65_535
"""Bytes of a VarChar."""
OURS = ("source_id", "attributes")


def write_milvus(material: Material, folder: Path) -> dict[str, Any]:
    """Write ``collection.json``, the body that makes the collection, and ``items.parquet``.

    Title and attributes are one field of JSON, which filters can read: Milvus has types for
    fewer columns than tables of items have.

    Raises:
        ConfigError: vectors or source ids that Milvus does not hold, or a clash of names.
    """
    vector, ids = material.vector_column, material.parts.dataset.items["source_id"]
    if material.dim > WIDEST:
        raise ConfigError(
            f"Milvus holds vectors of up to {WIDEST:,} numbers, and these have {material.dim:,}: "
            "leave out --format milvus"
        )
    if vector in OURS:
        raise ConfigError(f"--vector-column {vector} is another column of --format milvus")
    if ids.dtype.is_integer():
        key: dict[str, Any] = {"dataType": "Int64"}
    else:
        longest = int(ids.cast(pl.String).str.len_bytes().max() or 1)  # type: ignore[arg-type]
        if longest > LONGEST:
            raise ConfigError(
                f"Milvus holds source ids of up to {LONGEST:,} bytes, and one has {longest:,}: "
                "leave out --format milvus"
            )
        key = {"dataType": "VarChar", "elementTypeParams": {"max_length": max(longest, 1)}}
    fields = [
        {"fieldName": "source_id", "isPrimary": True, **key},
        {"fieldName": "attributes", "dataType": "JSON"},
        {
            "fieldName": vector,
            "dataType": "FloatVector",
            "elementTypeParams": {"dim": material.dim},
        },
    ]
    index = {
        "fieldName": vector,
        "indexName": vector,
        "metricType": "IP",
        "indexType": "HNSW",
        "params": {"M": 16, "efConstruction": 128},
    }
    write_json(
        folder / "collection.json",
        {
            "collectionName": COLLECTION,
            "schema": {"autoId": False, "enableDynamicField": False, "fields": fields},
            "indexParams": [index],
        },
    )
    schema: dict[str, pl.DataType] = {
        "source_id": pl.Int64() if ids.dtype.is_integer() else pl.String(),
        "attributes": pl.String(),
        vector: pl.List(pl.Float32),  # Milvus reads no lists of fixed size
    }
    write_parquet(folder / "items.parquet", schema, _frames(material, schema), material.metadata)
    return {"files": ["collection.json", "items.parquet"], "collection": COLLECTION}


def _frames(material: Material, schema: dict[str, pl.DataType]) -> Iterator[pl.DataFrame]:
    for frame in material.frames(ROWS, "writing milvus"):
        attributes = frame.drop("source_id", material.vector_column)
        if attributes.width:
            texts = json_lines(attributes)
        else:
            texts = pl.Series(["{}"]).new_from_index(0, frame.height)
        yield frame.with_columns(texts.alias("attributes")).select(
            pl.col(name).cast(dtype) for name, dtype in schema.items()
        )
