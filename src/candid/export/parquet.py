"""Tables written as parquet, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.io.plugins import register_io_source

if TYPE_CHECKING:
    from candid.export.material import Material

ROWS = 16_384


def write_items_parquet(material: Material, folder: Path) -> dict[str, Any]:
    """Write ``items.parquet``: source id, title, attributes, and the vector as a fixed-size list.

    The metadata of the file name the model.
    """
    path = folder / "items.parquet"
    frames = material.frames(ROWS, "writing parquet")
    write_parquet(path, material.schema, frames, material.metadata)
    return {"files": [path.name]}


def write_parquet(
    path: Path,
    schema: Mapping[str, pl.DataType],
    frames: Iterable[pl.DataFrame],
    metadata: Mapping[str, str],
) -> None:
    """Write frames one after the other into one file.

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
