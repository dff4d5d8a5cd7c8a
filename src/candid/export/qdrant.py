"""Item vectors as requests to Qdrant: a collection with dot products, and its points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from candid.atomic import write_json
from candid.export.documents import as_json, rows_of, write_requests

if TYPE_CHECKING:
    from candid.export.material import Material

MEGABYTES = 16
"""Of a request; Qdrant takes 32 unless it is told otherwise."""


def write_qdrant(material: Material, folder: Path) -> dict[str, Any]:
    """Write ``collection.json`` and ``points-00000.json`` onwards, bodies of PUT requests.

    The id of a point is the dense id of its item: Qdrant knows integers and UUIDs alone. The
    payload holds the source id, the title and the attributes.
    """
    write_json(folder / "collection.json", {"vectors": {"size": material.dim, "distance": "Dot"}})
    names = write_requests(_points(material), folder, "points", "points")
    return {"files": ["collection.json", *names]}


def _points(material: Material) -> Iterator[pl.DataFrame]:
    begin = 0
    for frame in material.frames(rows_of(MEGABYTES, material.dim), "writing qdrant"):
        yield pl.DataFrame(
            {
                "id": pl.int_range(begin, begin + frame.height, eager=True),
                "vector": frame[material.vector_column],
                "payload": as_json(frame.drop(material.vector_column)).to_struct(),
            }
        )
        begin += frame.height
