"""Readers, one per file format: ``scan(path, separator) -> Source``."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

from candid.component import lookup
from candid.data.readers import delimited, movielens, parquet, recbole
from candid.data.readers.source import (
    Source,
    check_columns,
    check_lines,
    collect,
    columns_of,
    require_columns,
)
from candid.errors import DataError

READERS: dict[str, Callable[[Path, str | None], Source]] = {
    "parquet": parquet.scan,
    "csv": delimited.scan_csv,
    "tsv": delimited.scan_tsv,
    "movielens": movielens.scan,
    "recbole": recbole.scan,
}

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "csv",
    ".dat": "movielens",
    ".inter": "recbole",
    ".item": "recbole",
    ".user": "recbole",
}

__all__ = [
    "READERS",
    "Source",
    "check_columns",
    "check_lines",
    "collect",
    "columns_of",
    "open_sources",
    "require_columns",
]


def open_sources(location: str, file_format: str, separator: str | None) -> list[Source]:
    """Scan a file, or every file of the format in a folder and below, in the order of names.

    Args:
        location: path; environment variables and ``~`` are expanded.
        file_format: key of ``READERS``, or "auto".
        separator: of csv files; None: taken from the header.

    Raises:
        DataError: the path does not exist, a file is empty, or a folder has mixed formats.
    """
    path = Path(os.path.expandvars(location)).expanduser()
    if "$" in str(path) and not path.exists():
        raise DataError(f"{path}: an environment variable in this path is not set; set it")
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path")
    if path.is_file():
        files, chosen = [path], _format_of(path) if file_format == "auto" else file_format
        if chosen is None:
            raise DataError(
                f"{path}: unknown file extension; set format to one of {', '.join(READERS)}"
            )
    else:
        files, chosen = _files_in(path, file_format)
    for file in files:
        if _is_empty(file):
            raise DataError(f"{file} is empty; choose another file")
    scan = lookup(READERS, "format", chosen)
    return [scan(file, separator) for file in files]


def _format_of(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix.lower())


def _files_in(folder: Path, file_format: str) -> tuple[list[Path], str]:
    by_format: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        is_hidden = any(part[0] in "._" for part in file.relative_to(folder).parts)
        name = None if is_hidden or not file.is_file() else _format_of(file)
        if name is not None:
            by_format.setdefault(name, []).append(file)
    if "movielens" in by_format:
        by_format["movielens"] = [f for f in by_format["movielens"] if f.name == "ratings.dat"]
    if "recbole" in by_format:
        by_format["recbole"] = [f for f in by_format["recbole"] if f.suffix == ".inter"]
    by_format = {name: files for name, files in by_format.items() if files}
    if file_format != "auto":
        by_format = {name: files for name, files in by_format.items() if name == file_format}
    if not by_format:
        kind = "data" if file_format == "auto" else file_format
        raise DataError(f"{folder} has no {kind} files; check the path or set format")
    if len(by_format) > 1:
        raise DataError(
            f"{folder} has files of several formats ({', '.join(by_format)}); set format, or name "
            "one file"
        )
    chosen, files = next(iter(by_format.items()))
    return files, chosen


def _is_empty(path: Path) -> bool:
    if path.suffix != ".gz":
        return path.stat().st_size == 0
    try:
        with gzip.open(path) as stream:
            return stream.read(1) == b""
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path} is not a readable gzip file ({error}); download it again"
        ) from error
