"""Tables written as parquet, in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source
from torch import Tensor

from candid.batches import Ints
from candid.export.context import ExportContext

ROWS = 16_384
"""Rows of a frame."""


def write_items_parquet(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``items.parquet``: source id, title, attributes, and the vector as a fixed-size list.

    For a baseline also ``users.parquet``, source id and vector of each user: no graph encodes them.
    The metadata of the files identify the model.
    """
    path = folder / "items.parquet"
    frames = context.frames(ROWS, "writing parquet")
    write_parquet(path, context.schema, frames, context.text_metadata)
    encode_users = context.export_input.encode_users
    if encode_users is None:
        return {"files": [path.name]}
    users = folder / "users.parquet"
    name = context.vector_column
    ids = context.export_input.dataset.users["source_id"]
    schema = {"source_id": ids.dtype, name: context.schema[name]}
    write_parquet(users, schema, _user_frames(ids, schema, encode_users), context.text_metadata)
    return {"files": [path.name, users.name]}


def _user_frames(
    ids: pl.Series, schema: Mapping[str, pl.DataType], encode_users: Callable[[Ints], Tensor]
) -> Iterator[pl.DataFrame]:
    for begin in range(0, len(ids), ROWS):
        chunk = ids.slice(begin, ROWS)
        vectors = encode_users(np.arange(begin, begin + len(chunk))).numpy()
        yield pl.DataFrame({"source_id": chunk, [*schema][1]: vectors}, schema=schema, strict=True)


def write_parquet(
    path: Path,
    schema: Mapping[str, pl.DataType],
    frames: Iterable[pl.DataFrame],
    metadata: Mapping[str, str],
) -> None:
    """Write frames into one file.

    Args:
        path: the file.
        schema: of every frame.
        frames: read once.
        metadata: of the file.
    """

    def source(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        return iter(frames)

    rows = register_io_source(source, schema=pl.Schema(schema))
    # Polars may create a path after it has raised, and the file would stay.
    with path.open("wb") as file:
        rows.sink_parquet(file, metadata=dict(metadata))
