"""Rows as JSON for document databases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl


def to_json_types(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the same rows with times as ISO 8601 text and decimals as floats.

    A time with a time zone is written as UTC, with Z.
    """
    columns = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if isinstance(dtype, pl.Datetime):
            zone = "" if dtype.time_zone is None else "Z"
            utc = column if dtype.time_zone is None else column.dt.convert_time_zone("UTC")
            columns.append(utc.dt.strftime(f"%Y-%m-%dT%H:%M:%S%.6f{zone}"))
        elif isinstance(dtype, pl.Decimal):
            columns.append(column.cast(pl.Float64))
    return frame.with_columns(columns)


def json_lines(frame: pl.DataFrame) -> pl.Series:
    """Return each row as a JSON object on one line; numbers that are not finite become null."""
    return to_json_types(frame).select(pl.struct(pl.all()).struct.json_encode()).to_series()


def rows_per_file(megabytes: int, dim: int) -> int:
    """Return the number of rows that make a file of about ``megabytes``.

    A row is estimated as its vector of ``dim`` numbers and a kilobyte of attributes.
    """
    return max(1, megabytes * 1_000_000 // (13 * dim + 1_000))


def write_requests(
    frames: Iterable[pl.DataFrame], folder: Path, stem: str, key: str, **others: str
) -> Iterator[str]:
    """Write the rows of each frame as one JSON object, the body of a request.

    Args:
        frames: one for each file.
        folder: of the files.
        stem: of their names: "stem-00000.json" onwards.
        key: of the array of rows.
        others: further keys, written before ``key``, with their values.

    Yields:
        The name of each file.
    """
    opening = json.dumps({**others, key: []})[:-2]
    for number, frame in enumerate(frames):
        name = f"{stem}-{number:05}.json"
        lines = ",\n".join(json_lines(frame))
        (folder / name).write_text(f"{opening}\n{lines}\n]}}\n", encoding="utf-8")
        yield name
