"""Opening of sources: from what a recipe names to files that are scanned but not yet read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import polars as pl

from candid.component import lookup
from candid.data.readers.files import DataFile, table_file
from candid.data.readers.lake import CATALOG
from candid.data.readers.locations import expand_variables, find_local, partition_types
from candid.data.readers.registry import READERS
from candid.data.readers.source import Source, columns_of
from candid.errors import DataError


def open_sources(
    locations: str | Sequence[str], file_format: str = "auto", separator: str | None = None
) -> list[Source]:
    """Scan files: one file, every file of the format in a folder and below, or a glob pattern.

    Files are in the order of names, those of several locations in the order of the list. Folders
    named ``column=value`` (hive partitions) become columns, unless the file has the column.

    Args:
        locations: path, or paths; environment variables and ``~`` are expanded.
        file_format: key of ``READERS``, or "auto".
        separator: of csv files; None: taken from the header.

    Raises:
        DataError: a path does not exist, a file is empty or named twice, or the files of a folder
            have mixed formats.
    """
    listed = [locations] if isinstance(locations, str) else list(locations)
    sources: list[Source] = []
    for location in listed:
        for chosen, group in groupby(find(location, file_format), key=itemgetter(0)):
            sources += lookup(READERS, "format", chosen)([file for _, file in group], separator)
    _check_distinct(sources)
    return _with_partitions(sources)


def find(location: str, file_format: str) -> list[tuple[str, DataFile]]:
    """Return the format and the description of each file of a location.

    Raises:
        DataError: as ``open_sources``.
    """
    text = expand_variables(location)
    if text.startswith(CATALOG):
        return [("iceberg", table_file(text, Path()))]
    return find_local(text, file_format)


def _check_distinct(sources: Sequence[Source]) -> None:
    seen: set[object] = set()
    for source in sources:
        path = source.state.get("path")
        if path in seen:
            raise DataError(f"{source.path} is named twice; name each file once")
        seen.add(path)


def _with_partitions(sources: Sequence[Source]) -> list[Source]:
    """Add the hive partitions of each file as columns: integers, or text."""
    partitions = [source.file.partitions if source.file else {} for source in sources]
    are_integers = partition_types(partitions)
    result = []
    for source, values in zip(sources, partitions, strict=True):
        columns = []
        known = columns_of(source).names() if values else []
        for name, value in values.items():
            if name in known:
                continue
            # Text formats have no other type.
            is_integer = are_integers[name] and source.first_line is None
            dtype = pl.Int64() if is_integer else pl.String()
            plain = int(value) if is_integer and value is not None else value
            columns.append(pl.lit(plain, dtype=dtype).alias(name))
        result.append(replace(source, frame=source.frame.with_columns(columns)))
    return result
