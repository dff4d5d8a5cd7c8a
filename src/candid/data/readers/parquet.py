"""Parquet files."""

from __future__ import annotations

import polars as pl

from candid.data.readers.files import DataFile, first_bytes, summary
from candid.data.readers.source import Source
from candid.errors import DataError

MAGICS = (b"PAR1", b"PARE")
"""First bytes of a parquet file, the second with an encrypted footer."""


def scan_query(file: DataFile, separator: str | None = None) -> Source:
    """Scan the rows of a query, copied by ``find_query``; ``separator`` is ignored."""
    path = file.path / "*.parquet" if file.path.is_dir() else file.path

    def explain(error: BaseException) -> str:
        return f"the copy of the rows cannot be read ({summary(error)}); run the command again"

    return Source.of(file, pl.scan_parquet(path, hive_partitioning=False), None, explain)


def scan(file: DataFile, separator: str | None = None) -> Source:
    """Scan one parquet file; ``separator`` is ignored.

    Raises:
        DataError: the file is empty, or is not a parquet file.
    """
    head = first_bytes(file.path, 4)
    if not head:
        raise DataError(f"{file} is empty; remove it, or write it again")
    if head not in MAGICS:
        raise DataError(f"{file} is not a readable parquet file; write it again")
    if head == b"PARE":
        raise DataError(f"{file} is encrypted; write it without encryption")

    def explain(error: BaseException) -> str:
        return f"not a readable parquet file ({summary(error)}); write it again"

    frame = pl.scan_parquet(file.path, glob=False, hive_partitioning=False)
    return Source.of(file, frame, None, explain)
