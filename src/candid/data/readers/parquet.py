"""Parquet files."""

from __future__ import annotations

import polars as pl

from candid.data.readers.files import DataFile, first_bytes, summary
from candid.data.readers.source import Source
from candid.errors import DataError

MAGICS = (b"PAR1", b"PARE")
"""First bytes of a parquet file, the second with an encrypted footer."""


def scan(file: DataFile, separator: str | None = None) -> Source:
    """Scan one parquet file; ``separator`` is ignored.

    Raises:
        DataError: the file is empty, or is not a parquet file.
    """
    head = first_bytes(file.path, 4)
    if not head:
        raise DataError(f"{file} is empty; choose another file")
    if head not in MAGICS:
        raise DataError(f"{file} is not a readable parquet file; write it again")
    if head == b"PARE":
        raise DataError(f"{file} is encrypted; write it without encryption")

    def explain(error: BaseException) -> str:
        return f"not a readable parquet file ({summary(error)}); write it again"

    frame = pl.scan_parquet(file.path, glob=False, hive_partitioning=False)
    return Source.of(file, frame, None, explain)
