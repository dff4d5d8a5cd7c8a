"""Item vectors and source ids as arrays that NumPy can map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap

from candid.export.context import ExportContext

ROWS = 65_536
"""Rows written at a time."""


def write_npy(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``vectors.npy`` [n, D] float32, and ``source_ids.npy`` [n] in the same order.

    Integer source ids are int64 or uint64, others fixed-width text.
    """
    vectors = context.vectors.numpy()
    array = open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=vectors.shape)
    for begin in range(0, len(vectors), ROWS):
        array[begin : begin + ROWS] = vectors[begin : begin + ROWS]
    array.flush()
    ids = context.items["source_id"]
    dtype: Any = np.uint64 if ids.dtype == pl.UInt64 else np.int64
    if not ids.dtype.is_integer():
        ids = ids.cast(pl.String)
        dtype = f"<U{max(1, int(ids.str.len_chars().max() or 0))}"  # type: ignore[arg-type]
    id_array = open_memmap(folder / "source_ids.npy", mode="w+", dtype=dtype, shape=(len(ids),))
    for begin in range(0, len(ids), ROWS):
        id_array[begin : begin + ROWS] = ids.slice(begin, ROWS).to_numpy()
    id_array.flush()
    return {"files": ["vectors.npy", "source_ids.npy"]}
