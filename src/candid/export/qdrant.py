"""Item vectors as requests to Qdrant: a collection with dot products, and its points."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import polars as pl

from candid.atomic import write_json
from candid.export.context import ExportContext
from candid.export.documents import rows_per_file, to_json_types, write_requests

REQUEST_MEGABYTES = 16
"""Size of a request; Qdrant accepts 32 by default."""

NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "candid-retrieval:item")
"""Of the UUIDs of points; another one would give every point of a collection another id."""


def write_qdrant(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``collection.json`` and ``points-00000.json`` onwards, bodies of PUT requests.

    A point has the id of ``point_ids``, so that the export of another day replaces the points of
    the same items. The payload holds the source id, the title and the attributes.
    """
    write_json(folder / "collection.json", {"vectors": {"size": context.dim, "distance": "Dot"}})
    names = write_requests(_points(context), folder, "points", "points")
    return {"files": ["collection.json", *names]}


def point_ids(source_ids: pl.Series) -> pl.Series:
    """Return the id of the point of each item: integers that are not negative, or UUIDs as text.

    Qdrant accepts unsigned integers of 64 bits and UUIDs. An integer source id is the id itself.
    If one is negative or the ids are text, each id is the UUID (version 5, RFC 9562) of its text.

    Args:
        source_ids: [n], integers or text, as in the files of the dataset.
    """
    if source_ids.dtype.is_integer() and (source_ids >= 0).all():
        return source_ids
    names = source_ids.cast(pl.String).to_list()
    return pl.Series([str(uuid.uuid5(NAMESPACE, name)) for name in names], dtype=pl.String)


def _points(context: ExportContext) -> Iterator[pl.DataFrame]:
    ids = point_ids(context.items["source_id"])
    begin = 0
    rows = rows_per_file(REQUEST_MEGABYTES, context.dim)
    for frame in context.frames(rows, "writing qdrant"):
        yield pl.DataFrame(
            {
                "id": ids.slice(begin, frame.height),
                "vector": frame[context.vector_column],
                "payload": to_json_types(frame.drop(context.vector_column)).to_struct(),
            }
        )
        begin += frame.height
