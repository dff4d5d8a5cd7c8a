"""Rows as JSON for databases of documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl


def as_json(frame: pl.DataFrame) -> pl.DataFrame:
    """The same rows with moments as ISO 8601 text and decimals as numbers.

    A moment of a known zone is written as UTC, with Z.
    """
    changed = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if isinstance(dtype, pl.Datetime):
            zone = "" if dtype.time_zone is None else "Z"
            utc = column if dtype.time_zone is None else column.dt.convert_time_zone("UTC")
            changed.append(utc.dt.strftime(f"%Y-%m-%dT%H:%M:%S%.6f{zone}"))
        elif isinstance(dtype, pl.Decimal):
            changed.append(column.cast(pl.Float64))
    return frame.with_columns(changed)


def json_lines(frame: pl.DataFrame) -> pl.Series:
    """Each row as a JSON object without line breaks; numbers that are not finite are null."""
    return as_json(frame).select(pl.struct(pl.all()).struct.json_encode()).to_series()


def rows_of(megabytes: int, dim: int) -> int:
    """Rows whose vectors, with a kilobyte of attributes each, make a file of about that size."""
    return max(1, megabytes * 1_000_000 // (13 * dim + 1_000))


def write_requests(
    frames: Iterable[pl.DataFrame], folder: Path, stem: str, key: str, **others: str
) -> Iterator[str]:
    """Write the rows of each frame as one JSON object, the body of a request; yields the names.

    Args:
        frames: one a file.
        folder: of the files.
        stem: of their names: "stem-00000.json" onwards.
        key: under which the rows stand, as an array.
        others: what stands before it.
    """
    opening = json.dumps({**others, key: []})[:-2]
    for number, frame in enumerate(frames):
        name = f"{stem}-{number:05}.json"
        lines = ",\n".join(json_lines(frame))
        (folder / name).write_text(f"{opening}\n{lines}\n]}}\n", encoding="utf-8")
        yield name
