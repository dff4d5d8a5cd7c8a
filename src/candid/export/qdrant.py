"""Item vectors as requests to Qdrant: a collection with dot products, and its points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from candid.atomic import write_json
from candid.export.context import ExportContext
from candid.export.documents import rows_per_file, to_json_types, write_requests

REQUEST_MEGABYTES = 16
"""Size of a request; Qdrant accepts 32 by default."""


def write_qdrant(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``collection.json`` and ``points-00000.json`` onwards, bodies of PUT requests.

    The id of a point is the dense id of its item: Qdrant accepts only integers and UUIDs. The
    payload holds the source id, the title and the attributes.
    """
    write_json(folder / "collection.json", {"vectors": {"size": context.dim, "distance": "Dot"}})
    names = write_requests(_points(context), folder, "points", "points")
    return {"files": ["collection.json", *names]}


def _points(context: ExportContext) -> Iterator[pl.DataFrame]:
    begin = 0
    rows = rows_per_file(REQUEST_MEGABYTES, context.dim)
    for frame in context.frames(rows, "writing qdrant"):
        yield pl.DataFrame(
            {
                "id": pl.int_range(begin, begin + frame.height, eager=True),
                "vector": frame[context.vector_column],
                "payload": to_json_types(frame.drop(context.vector_column)).to_struct(),
            }
        )
        begin += frame.height
