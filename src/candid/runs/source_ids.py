"""Source ids of users and items to dense ids, vectorised."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from candid.batches import Ints
from candid.errors import DataError

SourceId = int | str
"""An id as the user's files have it."""
NUM_SUGGESTIONS = 3


def dense_ids(source_ids: pl.Series, ids: Sequence[Any] | pl.Series, kind: str) -> Ints:
    """Return the dense id of each source id: [n] int64.

    Args:
        source_ids: [V] source ids in the order of the dense ids.
        ids: [n] source ids, in any order and with repeats.
        kind: "user" or "item", for messages.

    Raises:
        DataError: an id is of another type than the source ids, or is not among them.
    """
    dtype = source_ids.dtype
    try:
        wanted = pl.Series("source_id", ids, dtype=dtype, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        is_right = int if dtype.is_integer() else str
        wrong = next((one for one in ids if not isinstance(one, is_right)), ids[0])
        raise DataError(
            f"{kind} ids of this dataset are {dtype}, got {wrong!r} ({type(wrong).__name__}): "
            "give them as they are in the data"
        ) from None
    known = pl.DataFrame({"source_id": source_ids, "id": np.arange(len(source_ids))})
    found = pl.DataFrame([wanted]).join(known, on="source_id", how="left", maintain_order="left")
    if found["id"].null_count():
        first = found.filter(pl.col("id").is_null())["source_id"][0]
        raise DataError(f"unknown {kind} {first!r}{_suggestion(first, source_ids)}")
    return found["id"].to_numpy().astype(np.int64)


def _suggestion(source_id: object, source_ids: pl.Series) -> str:
    """The clause that names similar ids of text."""
    if not isinstance(source_id, str):
        return ": it is not in the dataset"
    similar = difflib.get_close_matches(source_id, source_ids.to_list(), n=NUM_SUGGESTIONS)
    return (
        f": did you mean {', '.join(map(repr, similar))}?"
        if similar
        else (": it is not in the dataset")
    )
