"""Some columns of remote parquet files: Polars downloads only these."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from candid.data.readers.files import PANIC, CopyColumns, DataFile
from candid.data.urls import scheme_of

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
"""Those that Polars reads."""


def columns_copier(columns: Sequence[str]) -> CopyColumns:
    """Return a function that copies the given columns of a parquet file, for ``fetch``.

    It returns None where nothing is saved or Polars cannot read the file: other credentials than
    those that fsspec finds, a web server without ranges, a damaged file. The caller then downloads
    the whole file, whose errors are sentences.

    Args:
        columns: names; those that the file does not have are ignored.
    """
    has_failed = threading.Event()  # so that a folder of many files does not fail file by file

    def copy(file: DataFile, target: Path) -> tuple[str, ...] | None:
        if has_failed.is_set() or scheme_of(file.url) not in SCHEMES:
            return None
        try:
            # Without repetitions: the download of the whole file has its own.
            frame = pl.scan_parquet(
                file.url, glob=False, hive_partitioning=False, storage_options={"max_retries": 0}
            )
            names = frame.collect_schema().names()
            chosen = [name for name in names if name in columns]
            if not chosen or len(chosen) == len(names):
                return None
            frame.select(chosen).sink_parquet(target)
        except (Exception, PANIC):
            has_failed.set()
            target.unlink(missing_ok=True)
            return None
        return tuple(name for name in names if name not in chosen)

    return copy
