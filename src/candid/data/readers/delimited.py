"""Comma, tab or otherwise separated text, plain or gzip, with a header line."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import IO

import polars as pl

from candid.data.readers.source import Source
from candid.errors import DataError

SEPARATORS = (",", "\t", ";", "|")


def scan_csv(path: Path, separator: str | None = None) -> Source:
    """Scan a csv file; without a ``separator`` the one the header line uses most."""
    return _scan(path, separator or _separator_of(path))


def scan_tsv(path: Path, separator: str | None = None) -> Source:
    """Scan a tab separated file."""
    return _scan(path, separator or "\t")


def open_text(path: Path) -> IO[str]:
    """Open a plain or gzip text file; bytes that are not UTF-8 become replacement marks."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def header_of(path: Path) -> str:
    """Return the first line.

    Raises:
        DataError: the file cannot be decompressed.
    """
    try:
        with open_text(path) as stream:
            return stream.readline().rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error


def _separator_of(path: Path) -> str:
    header = header_of(path)
    return max(SEPARATORS, key=header.count)


def _scan(path: Path, separator: str) -> Source:
    header = next(csv.reader([header_of(path)], delimiter=separator), [])
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(f"{path} has two columns {min(repeated)!r}; rename one")
    frame = pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)

    def explain(error: Exception) -> str:
        return explain_text(path, separator, len(header), error)

    return Source(path, frame, 2, explain)


def explain_text(path: Path, separator: str, width: int, error: Exception) -> str:
    """Find the line that stopped the reader."""
    try:
        with open_text(path) as stream:
            rows = csv.reader(stream, delimiter=separator)
            for row in rows:
                if len(row) > width:
                    return (
                        f"line {rows.line_num} has {len(row)} fields where the header has {width}; "
                        "repair the line, quote the field, or set separator"
                    )
                if any("\ufffd" in field for field in row):
                    return f"line {rows.line_num} is not UTF-8 text; convert the file"
    except (OSError, EOFError, csv.Error) as damage:
        return f"cannot be read to the end ({damage}); fetch it again"
    return f"cannot be read ({str(error).splitlines()[0]})"
