"""Formats of files: the reader of each, and the file names that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from candid.data.readers import (
    arrow,
    delimited,
    json_lines,
    lake,
    movielens,
    parquet,
    recbole,
)
from candid.data.readers.files import DataFile
from candid.data.readers.source import Source

Reader = Callable[[Sequence[DataFile], str | None], list[Source]]


def _each(scan: Callable[[DataFile, str | None], Source]) -> Reader:
    """Make a reader of files from a reader of one."""
    return lambda files, separator: [scan(file, separator) for file in files]


READERS: dict[str, Reader] = {
    "parquet": _each(parquet.scan),
    "csv": _each(delimited.scan_csv),
    "tsv": _each(delimited.scan_tsv),
    "jsonl": json_lines.scan_all,
    "arrow": _each(arrow.scan),
    "movielens": _each(movielens.scan),
    "recbole": _each(recbole.scan),
    "delta": _each(lake.scan_delta),
    "iceberg": _each(lake.scan_iceberg),
}

QUERY: Reader = _each(parquet.scan_query)
"""Reader of the rows of a query."""

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".dat": "movielens",
    ".inter": "recbole",
    ".item": "recbole",
    ".user": "recbole",
}

LAKE = ("delta", "iceberg")
"""Formats whose tables are folders with a log."""
BINARY = ("parquet", "arrow")
"""Formats whose files compress their own content: .gz and the like are not for them."""
