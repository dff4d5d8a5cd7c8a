"""Tables written as parquet, in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from candid.export.context import ExportContext

ROWS = 16_384
"""Rows of a frame."""


def write_items_parquet(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write ``items.parquet``: source id, title, attributes, and the vector as a fixed-size list.

    The metadata of the file identify the model.
    """
    path = folder / "items.parquet"
    frames = context.frames(ROWS, "writing parquet")
    write_parquet(path, context.schema, frames, context.text_metadata)
    return {"files": [path.name]}


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
    rows.sink_parquet(path, metadata=dict(metadata))
