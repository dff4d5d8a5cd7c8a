"""Parquet files."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from candid.data.readers.source import Source


def scan(path: Path, separator: str | None = None) -> Source:
    """Scan one parquet file; ``separator`` is ignored."""

    def explain(error: Exception) -> str:
        return f"not a readable parquet file ({str(error).splitlines()[0]}); write it again"

    return Source(path, pl.scan_parquet(path, glob=False), None, explain)
