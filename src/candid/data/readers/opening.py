"""Opening of sources: from what a recipe names to files that are scanned but not yet read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import polars as pl

from candid.component import lookup
from candid.data.readers.database import find_query, is_database
from candid.data.readers.files import DataFile, fetch, system_reason
from candid.data.readers.lake import CATALOG, iceberg_table
from candid.data.readers.locations import expand_variables, find_local, partition_types
from candid.data.readers.registry import QUERY, READERS
from candid.data.readers.remote import find_remote
from candid.data.readers.remote_columns import columns_copier
from candid.data.readers.source import Source, columns_of
from candid.data.urls import scheme_of, without_secrets
from candid.errors import ConfigError, DataError


@dataclass(frozen=True)
class Found:
    """Files of a table that are found but not yet read, nor downloaded.

    Attributes:
        files: format and description of each file, in order.
        separator: of csv files; None: taken from the header.
    """

    files: Sequence[tuple[str, DataFile]]
    separator: str | None = None

    @property
    def states(self) -> list[dict[str, Any]]:
        """Entries of the manifest: each file's path, and what changes when its content does."""
        return [dict(file.state) for _, file in self.files]

    def open(self, columns: Iterable[str] | None = None) -> list[Source]:
        """Download remote files, and scan all.

        Args:
            columns: to read; others of remote parquet files are not downloaded where that works,
                and are ``further_columns`` of the source. None: all.

        Raises:
            DataError: a file is empty or cannot be read.
        """
        sources: list[Source] = []
        for name, group in groupby(self.files, key=itemgetter(0)):
            copy_columns = None
            if name == "parquet" and columns is not None:
                copy_columns = columns_copier(list(columns))
            files = fetch([file for _, file in group], copy_columns)
            read = QUERY if name == "query" else lookup(READERS, "format", name)
            sources += read(files, self.separator)
        return _with_partitions(sources)


def open_sources(
    locations: str | Sequence[str],
    file_format: str = "auto",
    separator: str | None = None,
    query: str | None = None,
) -> list[Source]:
    """Find and open files: ``find_sources(...).open()``."""
    return find_sources(locations, file_format, separator, query).open()


def find_sources(
    locations: str | Sequence[str],
    file_format: str = "auto",
    separator: str | None = None,
    query: str | None = None,
    column_names: tuple[str, ...] = (),
) -> Found:
    """Find files: one file, every file of the format in a folder and below, or a glob pattern.

    With a query, the location is the URI of a database.

    Files are in the order of names, those of several locations in the order of the list. Folders
    named ``column=value`` (hive partitions) become columns, unless the file has the column.

    Args:
        locations: path or URL, or several; environment variables and ``~`` are expanded.
        file_format: key of ``READERS``, or "auto".
        separator: of csv files; None: taken from the header.
        query: SELECT statement for a database.
        column_names: names of the columns of csv and tsv files without a header line.

    Raises:
        ConfigError: a package for the location is not installed, or ``column_names`` is set for
            files of another format.
        DataError: a path does not exist, a file is named twice, or the files of a folder have mixed
            formats.
    """
    if query is not None:
        uri = expand_variables(locations) if isinstance(locations, str) else ""
        if not is_database(uri):
            raise ConfigError(
                "a query needs the URI of one database: duckdb:///FILE or "
                "postgresql://USER@HOST/DATABASE"
            )
        return Found([("query", find_query(uri, query))])
    listed = [locations] if isinstance(locations, str) else list(locations)
    files = [pair for location in listed for pair in _find(location, file_format)]
    seen: set[object] = set()
    for _, file in files:
        if file.state["path"] in seen:
            raise DataError(f"{file} is named twice; name each file once")
        seen.add(file.state["path"])
    if column_names:
        for name, file in files:
            if name not in ("csv", "tsv"):
                raise ConfigError(
                    f"{file} is of format {name}, which has names of columns: column_names is for "
                    "csv and tsv files without a header line; remove it, or set format"
                )
        files = [(name, replace(file, column_names=column_names)) for name, file in files]
    return Found(files, separator)


def _find(location: str, file_format: str) -> list[tuple[str, DataFile]]:
    text = expand_variables(location).removeprefix("file://")
    if is_database(text):
        raise ConfigError(f"{without_secrets(text)} is a database; add a query")
    if text.startswith(CATALOG):
        return [("iceberg", iceberg_table(text, text))]
    if scheme_of(text) is not None:
        return find_remote(text, file_format)
    try:
        return find_local(text, file_format)
    except OSError as error:  # such as a name that is too long
        advice = f"{(error.strerror or str(error)).lower()}; check the path"
        raise DataError(f"{text} cannot be read: {system_reason(error) or advice}") from error


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
