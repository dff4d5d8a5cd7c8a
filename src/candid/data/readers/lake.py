"""Delta and Iceberg tables, read by their logs: replaced and deleted rows are left out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import polars as pl

from candid.data.readers.files import PANIC, DataFile, partitions_of, summary, unreadable
from candid.data.readers.source import Source
from candid.errors import ConfigError, DataError

DELTA_LOG = "_delta_log"
METADATA = re.compile(r"v?(\d+)(-[^/]*)?(\.gz)?\.metadata\.json")
"""Name of a metadata file of Iceberg; the number counts the changes of the table."""
CATALOG = "iceberg://"
FILE = "file://"
INSTALL = "pip install 'candid-retrieval[lake]'"

FAULTS: tuple[type[BaseException], ...] = (Exception, PANIC)
"""deltalake raises errors of many kinds, and panics at some paths."""

# Polars plans with pyiceberg and warns that another planner would be faster.
os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")


def lake_format(folder: Path) -> str | None:
    """Return "delta" or "iceberg" for the folder of such a table, else None."""
    if (folder / DELTA_LOG).is_dir():
        return "delta"
    if (folder / "metadata").is_dir() and _metadata_files(folder):
        return "iceberg"
    return None


def lake_table(kind: str, path: str) -> DataFile:
    """Describe a table with a log: ``kind`` is "delta" or "iceberg"."""
    return delta_table(path, path) if kind == "delta" else iceberg_table(path, path)


def delta_table(name: str, location: str) -> DataFile:
    """Describe the current version of a Delta table.

    Args:
        name: path or URL, as in messages.
        location: path or URL to read.

    Raises:
        ConfigError: deltalake is not installed.
        DataError: the log cannot be read.
    """
    try:
        import deltalake
    except ImportError as error:
        raise ConfigError(
            f"{name} is a Delta table, which needs deltalake; run {INSTALL}"
        ) from error
    try:
        table = deltalake.DeltaTable(location)
        state = {"table": str(table.metadata().id), "version": table.version()}
    except FAULTS as error:
        raise unreadable(name, error, _explain_delta) from error
    return _table(name, location, state)


def scan_delta(file: DataFile, separator: str | None = None) -> Source:
    """Scan a Delta table from ``delta_table``; ``separator`` is ignored.

    Raises:
        DataError: the table cannot be read.
    """
    try:
        frame = pl.scan_delta(_open_delta(file.url, file.state["version"]))
    except FAULTS as error:
        raise unreadable(file, error, _explain_delta) from error
    return Source.of(file, frame, None, _explain_delta)


def _open_delta(location: str, version: int) -> Any:
    """Open a Delta table whose files and deletion vectors have the same, readable paths.

    deltalake escapes the folder (``my%20table``), which Polars does not undo, and escapes the
    paths of deletion vectors once more than those of files. Polars ignores a deletion vector whose
    path it does not find, and then returns deleted rows.
    """
    from deltalake import DeltaTable

    class Table(DeltaTable):
        def file_uris(self, *arguments: Any, **options: Any) -> list[str]:
            escaped = self.table_uri.removeprefix(FILE)
            uris = super().file_uris(*arguments, **options)
            return [
                unquote(escaped) + uri.removeprefix(escaped) if uri.startswith(escaped) else uri
                for uri in uris
            ]

        def deletion_vectors(self) -> Any:
            vectors = pl.DataFrame(super().deletion_vectors())
            known = set(self.file_uris())
            paths = [path.removeprefix(FILE) for path in vectors["filepath"]]
            paths = [path if path in known else unquote(path) for path in paths]
            unknown = next((path for path in paths if path not in known), None)
            if unknown is not None:
                raise ValueError(f"the deletion vector of {unknown} has no file")
            return vectors.with_columns(pl.Series("filepath", paths, dtype=pl.String))

    return Table(location, version=version)


def iceberg_table(name: str, location: str) -> DataFile:
    """Describe the current snapshot of an Iceberg table.

    Args:
        name: path or URL, as in messages.
        location: folder, metadata file, or ``iceberg://CATALOG/NAMESPACE.TABLE``.

    Raises:
        ConfigError: pyiceberg is not installed.
        DataError: the metadata cannot be read, or the table has no rows.
    """
    try:
        for package in ("pyiceberg", "pyarrow"):
            import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{name} is an Iceberg table, which needs {error.name}; run {INSTALL}"
        ) from error
    is_folder = "://" not in location and Path(location).is_dir()
    url = str(_latest(Path(location))) if is_folder else location
    table = _load(name, url)
    snapshot = table.current_snapshot()
    if snapshot is None:
        raise DataError(f"{name} has no rows; check the table")
    state = {"table": str(table.metadata.table_uuid), "version": snapshot.snapshot_id}
    return _table(name, url, state)


def scan_iceberg(file: DataFile, separator: str | None = None) -> Source:
    """Scan an Iceberg table from ``iceberg_table``; ``separator`` is ignored.

    Raises:
        DataError: the table cannot be read.
    """
    table = _load(file.name, file.url)
    try:
        version = file.state["version"]
        # A snapshot has the schema of its time; columns may have been renamed since.
        snapshot = table.current_snapshot()
        is_current = snapshot is not None and snapshot.snapshot_id == version
        frame = pl.scan_iceberg(table, snapshot_id=None if is_current else version)
        frame.collect_schema()
        table.scan(snapshot_id=version).plan_files()  # refuses kinds of deletes that it cannot read
    except Exception as error:  # pyiceberg raises errors of many kinds
        raise unreadable(file, error, _explain_iceberg) from error
    return Source.of(file, frame, None, _explain_iceberg)


def _table(name: str, url: str, state: Mapping[str, Any]) -> DataFile:
    path = name if "://" in name else str(Path(name).resolve())
    folders = PurePosixPath(name).parts
    return DataFile(
        name, Path(), {"path": path, **state}, partitions=partitions_of(folders), url=url
    )


def _load(name: str, url: str) -> Any:
    """Load an Iceberg table by its catalog or its metadata file."""
    catalog, _, table = url.removeprefix(CATALOG).partition("/")
    is_cataloged = url.startswith(CATALOG)
    if is_cataloged and not (catalog and table):
        raise DataError(f"{name} must be {CATALOG}CATALOG/NAMESPACE.TABLE")
    try:
        if is_cataloged:
            from pyiceberg.catalog import load_catalog

            return load_catalog(catalog).load_table(table)
        from pyiceberg.table import StaticTable

        # pyiceberg reads the endpoint of S3 from a catalog only.
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        return StaticTable.from_metadata(url, {"s3.endpoint": endpoint} if endpoint else {})
    except Exception as error:  # pyiceberg raises errors of many kinds
        raise unreadable(name, error, _explain_iceberg) from error


def _explain_delta(error: BaseException) -> str:
    return f"not a readable Delta table ({summary(error)}); check its log"


def _explain_iceberg(error: BaseException) -> str:
    if "equality delete" in str(error).lower():
        return "it has equality deletes, which pyiceberg cannot read; compact the table"
    return f"not a readable Iceberg table ({summary(error)}); check its metadata"


def _latest(folder: Path) -> Path:
    """Return the current metadata file of a table.

    Raises:
        DataError: two files have the highest number: only a catalog names the current one.
    """
    files = _metadata_files(folder)
    hint = folder / "metadata" / "version-hint.text"
    if hint.exists():
        version = hint.read_text().strip()
        named = [path for number, path in files if str(number) == version or path.name == version]
        if len(named) == 1:
            return named[0]
    highest = max(number for number, _ in files)
    current = sorted(path for number, path in files if number == highest)
    if len(current) > 1:
        raise DataError(
            f"{folder} has two metadata files of version {highest} ({current[0].name}, "
            f"{current[1].name}); name the current one, or the table by its catalog as "
            f"{CATALOG}CATALOG/NAMESPACE.TABLE"
        )
    return current[0]


def _metadata_files(folder: Path) -> list[tuple[int, Path]]:
    pairs = [(METADATA.fullmatch(path.name), path) for path in (folder / "metadata").iterdir()]
    return [(int(match[1]), path) for match, path in pairs if match is not None]
