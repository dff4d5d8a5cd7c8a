"""Item vectors as requests to Milvus: a collection with inner products, and its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from candid.atomic import write_json
from candid.errors import ConfigError
from candid.export.documents import as_json, rows_of, write_requests

if TYPE_CHECKING:
    from candid.export.material import Material

COLLECTION = "candid_items"
MEGABYTES = 16
"""Of a request; Milvus takes 64 unless it is told otherwise."""
WIDEST = 32_768
LONGEST = 65_535
"""Bytes of a VarChar."""
OURS = ("source_id", "attributes")


def write_milvus(material: Material, folder: Path) -> dict[str, Any]:
    """Write ``collection.json`` and ``rows-00000.json`` onwards, bodies of POST requests.

    Rows are JSON, not parquet: a server reads parquet from its own object store alone, and of
    the types that Arrow has for text and lists not those that Polars writes. Title and
    attributes are one field of JSON, which filters can read: Milvus has types for fewer columns
    than tables of items have.

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
    names = write_requests(_rows(material), folder, "rows", "data", collectionName=COLLECTION)
    return {"files": ["collection.json", *names], "collection": COLLECTION}


def _rows(material: Material) -> Iterator[pl.DataFrame]:
    vector = material.vector_column
    for frame in material.frames(rows_of(MEGABYTES, material.dim), "writing milvus"):
        attributes = as_json(frame.drop("source_id", vector)).to_struct("attributes")
        yield frame.select("source_id", attributes, vector)
