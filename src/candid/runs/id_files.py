"""Files of source ids: one id a line, or a column of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from candid.data.readers import collect, columns_of, open_sources
from candid.data.source_ids import match_ids
from candid.errors import DataError

COLUMNS: Final = {
    "user": ("user", "user_id", "query", "source_id"),
    "item": ("item", "item_id", "query", "source_id"),
}
"""Names of the column with the ids in a table of several columns."""


def read_ids(path: Path, kind: str, dtype: pl.DataType) -> pl.Series:
    """Read source ids from a file.

    Args:
        path: a text file (``.txt``) with one id a line, or a table in a format of
            ``candid prepare``: its only column, or the one named in ``COLUMNS``.
        kind: "user" or "item".
        dtype: of the source ids of the dataset.

    Returns:
        the ids in this type, in the order of the file.

    Raises:
        DataError: the file cannot be read, is empty, or has no such column, or an id is missing or
            of another type.
    """
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; check the path") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read {kind}s from {path}: {error}; choose a UTF-8 file with one id a line"
            ) from None
        ids = pl.Series([line.strip() for line in lines if line.strip()], dtype=pl.String)
    else:
        sources = open_sources(str(path), "auto", None)
        names = columns_of(sources[0]).names()
        chosen = [name for name in COLUMNS[kind] if name in names] if len(names) > 1 else names
        if not chosen:
            raise DataError(
                f"{path} has no column {COLUMNS[kind][0]!r}: rename the column of the {kind}s to "
                f"it; columns: {', '.join(names)}"
            )
        frames = [source.frame.select(chosen[0]) for source in sources]
        ids = collect(pl.concat(frames, how="vertical_relaxed"), sources)[chosen[0]]
    if ids.dtype.is_nested():
        raise DataError(
            f"column {ids.name!r} of {path} is of type {ids.dtype}, not one {kind} id a row: "
            "choose another file, or explode the column"
        )
    if not len(ids):
        raise DataError(f"{path} has no {kind}s: choose another file")
    converted = match_ids(ids, dtype)
    if converted.null_count():
        row = int(converted.is_null().arg_max() or 0)
        raise DataError(
            f"{kind} {ids[row]!r} in row {row + 1} of {path} is not of type {dtype}, the type of "
            f"the {kind} ids of the dataset: correct or remove it"
        )
    return converted


def parse_ids(texts: Sequence[str], kind: str, dtype: pl.DataType) -> pl.Series:
    """Convert source ids of a command to the type of the dataset.

    Args:
        texts: each as the dataset has it: 42, not 0042 or 42.0, in a dataset of whole numbers.
        kind: "user" or "item".
        dtype: of the source ids of the dataset.

    Raises:
        DataError: an id is of another type.
    """
    series = pl.Series(texts, dtype=pl.String)
    converted = series.cast(dtype, strict=False)
    is_same = (converted.cast(pl.String) == series).fill_null(False)
    if not is_same.all():
        raise DataError(
            f"{kind} {series.filter(~is_same)[0]!r} is not of type {dtype}, the type of the {kind} "
            "ids of the dataset: write it as the dataset has it"
        )
    return converted
