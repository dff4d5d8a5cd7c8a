"""Item vectors as requests to Qdrant: a collection with dot products, and its points."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from candid.atomic import write_json
from candid.export.documents import as_json, json_lines, rows_of

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
    numbers, begin = count(), 0
    files = ["collection.json"]
    for frame in material.frames(rows_of(MEGABYTES, material.dim), "writing qdrant"):
        ids = pl.int_range(begin, begin + frame.height, eager=True)
        points = pl.DataFrame(
            {
                "id": ids,
                "vector": frame[material.vector_column],
                "payload": as_json(frame.drop(material.vector_column)).to_struct(),
            }
        )
        begin += frame.height
        files.append(f"points-{next(numbers):05}.json")
        lines = ",\n".join(json_lines(points))
        (folder / files[-1]).write_text(f'{{"points": [\n{lines}\n]}}\n', encoding="utf-8")
    return {"files": files}
