"""Item vectors and source ids as arrays that NumPy maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap

if TYPE_CHECKING:
    from candid.export.material import Material

ROWS = 65_536


def write_npy(material: Material, folder: Path) -> dict[str, Any]:
    """Write ``vectors.npy`` [V, D] float32, and ``source_ids.npy`` [V] in the same order.

    Source ids are int64 or uint64 where they are integers, else texts of one width.
    """
    vectors = material.vectors.numpy()
    array = open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=vectors.shape)
    for begin in range(0, len(vectors), ROWS):
        array[begin : begin + ROWS] = vectors[begin : begin + ROWS]
    array.flush()
    ids = material.parts.dataset.items["source_id"]
    kind: Any = np.uint64 if ids.dtype == pl.UInt64 else np.int64
    if not ids.dtype.is_integer():
        ids = ids.cast(pl.String)
        kind = f"<U{max(1, int(ids.str.len_chars().max() or 0))}"  # type: ignore[arg-type]
    names = open_memmap(folder / "source_ids.npy", mode="w+", dtype=kind, shape=(len(ids),))
    for begin in range(0, len(ids), ROWS):
        names[begin : begin + ROWS] = ids.slice(begin, ROWS).to_numpy()
    names.flush()
    return {"files": ["vectors.npy", "source_ids.npy"]}
