"""Arrow files: the IPC file format (Feather version 2) and the IPC stream format."""

from __future__ import annotations

import polars as pl

from candid.data.readers.files import (
    READ_ERRORS,
    DataFile,
    first_bytes,
    summary,
    unreadable,
)
from candid.data.readers.panics import without_panic_messages
from candid.data.readers.source import Source
from candid.errors import DataError

FILE = b"ARROW1"
STREAM = b"\xff\xff\xff\xff"
"""First bytes of a stream, by the marker of its first message."""


def scan(file: DataFile, separator: str | None = None) -> Source:
    """Scan one file; ``separator`` is ignored. A stream has no index, so it is read into memory.

    Raises:
        DataError: the file is empty, not an Arrow file, or damaged.
    """
    head = first_bytes(file.path, 8)
    if not head:
        raise DataError(f"{file} is empty; remove it, or write it again")
    if head.startswith(b"FEA1"):
        raise DataError(
            f"{file} is a Feather file of version 1; write it as version 2 or as parquet"
        )

    def explain(error: BaseException) -> str:
        return f"not a readable Arrow file ({summary(error)}); write it again"

    if head.startswith(FILE):
        frame = pl.scan_ipc(file.path, glob=False, hive_partitioning=False)
    elif head.startswith(STREAM):
        try:
            with without_panic_messages():
                frame = pl.read_ipc_stream(file.path).lazy()
        except READ_ERRORS as error:
            raise unreadable(file, error, explain) from error
    else:
        raise DataError(f"{file} is not an Arrow file; write it again, or set its format")
    return Source.of(file, frame, None, explain)
