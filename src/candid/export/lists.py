"""Lists of the best items of each user of the dataset, in one parquet table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from candid.export.context import ExportContext
from candid.export.parquet import write_parquet

USERS = 4096
"""Users of a frame."""


def write_lists(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``lists.parquet``: ``user_id``, ``item_id`` (source ids), ``rank`` and ``score``.

    A user has the list that ``recommend`` gives, ordered by rank. Users without a history are
    left out where the model needs one.
    """
    path = folder / "lists.parquet"
    dataset = context.export_input.dataset
    schema: dict[str, pl.DataType] = {
        "user_id": dataset.users.schema["source_id"],
        "item_id": dataset.items.schema["source_id"],
        "rank": pl.Int32(),
        "score": pl.Float32(),
    }
    write_parquet(path, schema, _frames(context, schema), context.text_metadata)
    return {"files": [path.name]}


def _frames(context: ExportContext, schema: dict[str, pl.DataType]) -> Iterator[pl.DataFrame]:
    source = context.export_input
    users = np.arange(source.dataset.num_users)
    if source.needs_history:
        users = users[np.diff(source.dataset.user_offsets) > 0]
    for begin in range(0, len(users), USERS):
        chunk = users[begin : begin + USERS]
        lists = source.recommend(chunk, context.k).to_frame()
        yield lists.select(
            pl.col("query").alias("user_id"), pl.col("item").alias("item_id"), "rank", "score"
        ).cast(schema)  # type: ignore[arg-type]
        if context.progress is not None:
            context.progress("writing lists", min(begin + USERS, len(users)), len(users))
