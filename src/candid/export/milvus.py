"""Item vectors as requests to Milvus: a collection with inner products, and its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from candid.atomic import write_json
from candid.errors import ConfigError
from candid.export.context import ExportContext
from candid.export.documents import rows_per_file, to_json_types, write_requests

COLLECTION = "candid_items"
REQUEST_MEGABYTES = 16
"""Size of a request; Milvus accepts 64 by default."""
MAX_DIM = 32_768
MAX_INT64 = 2**63 - 1
MAX_VARCHAR_BYTES = 65_535
RESERVED_FIELDS = ("source_id", "attributes")
"""Fields of the collection other than the vector."""


def write_milvus(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``collection.json`` and ``rows-00000.json`` onwards, bodies of POST requests.

    The rows are JSON, not parquet: a Milvus server reads parquet only from its own object store,
    and does not support all Arrow types for text and lists that Polars writes. Title and
    attributes are one JSON field, which filters can read, because a table of items can have
    columns of types that Milvus does not have.

    Raises:
        ConfigError: vectors or source ids that Milvus does not accept, or a clash of names.
    """
    vector, ids = context.vector_column, context.export_input.dataset.items["source_id"]
    if context.dim > MAX_DIM:
        raise ConfigError(
            f"Milvus accepts vectors of up to {MAX_DIM:,} numbers, and these have "
            f"{context.dim:,}; leave out --format milvus"
        )
    if vector in RESERVED_FIELDS:
        raise ConfigError(
            f"--format milvus already has a field {vector!r}; choose another --vector-column"
        )
    if ids.dtype.is_integer():
        largest = int(ids.max() or 0)  # type: ignore[arg-type]
        if largest > MAX_INT64:
            raise ConfigError(
                f"Milvus accepts integer source ids of up to {MAX_INT64}, and one is {largest}; "
                "prepare the data with ids as text, or leave out --format milvus"
            )
        key: dict[str, Any] = {"dataType": "Int64"}
    else:
        longest = int(ids.cast(pl.String).str.len_bytes().max() or 1)  # type: ignore[arg-type]
        if longest > MAX_VARCHAR_BYTES:
            raise ConfigError(
                f"Milvus accepts source ids of up to {MAX_VARCHAR_BYTES:,} bytes, and one has "
                f"{longest:,}; leave out --format milvus"
            )
        key = {"dataType": "VarChar", "elementTypeParams": {"max_length": max(longest, 1)}}
    fields = [
        {"fieldName": "source_id", "isPrimary": True, **key},
        {"fieldName": "attributes", "dataType": "JSON"},
        {
            "fieldName": vector,
            "dataType": "FloatVector",
            "elementTypeParams": {"dim": context.dim},
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
    names = write_requests(_rows(context), folder, "rows", "data", collectionName=COLLECTION)
    return {"files": ["collection.json", *names], "collection": COLLECTION}


def _rows(context: ExportContext) -> Iterator[pl.DataFrame]:
    vector = context.vector_column
    for frame in context.frames(rows_per_file(REQUEST_MEGABYTES, context.dim), "writing milvus"):
        attributes = to_json_types(frame.drop("source_id", vector)).to_struct("attributes")
        yield frame.select("source_id", attributes, vector)
