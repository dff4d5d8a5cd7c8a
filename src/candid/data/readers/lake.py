"""Delta and Iceberg tables, read by their logs: replaced and deleted rows are left out."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl

from candid.data.readers.files import DataFile, summary, unreadable
from candid.data.readers.source import Source
from candid.errors import ConfigError, DataError

DELTA_LOG = "_delta_log"
METADATA = re.compile(r"v?(\d+)(-[^/]*)?(\.gz)?\.metadata\.json")
"""Name of a metadata file of Iceberg; the number counts the changes of the table."""
CATALOG = "iceberg://"
INSTALL = "pip install 'candid-retrieval[lake]'"

# Polars plans with pyiceberg and warns that another planner would be faster.
os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")


def lake_format(folder: Path) -> str | None:
    """Return "delta" or "iceberg" for the folder of such a table, else None."""
    if (folder / DELTA_LOG).is_dir():
        return "delta"
    if (folder / "metadata").is_dir() and _metadata_files(folder):
        return "iceberg"
    return None


def scan_delta(file: DataFile, separator: str | None = None) -> Source:
    """Scan the current version of a Delta table; ``separator`` is ignored.

    Raises:
        ConfigError: deltalake is not installed.
        DataError: the table cannot be read.
    """
    try:
        import deltalake
    except ImportError as error:
        raise ConfigError(
            f"{file} is a Delta table, which needs deltalake; run {INSTALL}"
        ) from error

    def explain(error: BaseException) -> str:
        return f"not a readable Delta table ({summary(error)}); check its log"

    try:
        table = deltalake.DeltaTable(file.location)
        frame = pl.scan_delta(table)
        state = {
            "path": file.state["path"],
            "table": str(table.metadata().id),
            "version": table.version(),
        }
    except Exception as error:  # deltalake raises errors of many kinds
        raise unreadable(file, error, explain) from error
    return Source(file.name, frame, None, explain, state=state, file=file)


def scan_iceberg(file: DataFile, separator: str | None = None) -> Source:
    """Scan the current snapshot of an Iceberg table; ``separator`` is ignored.

    Raises:
        ConfigError: pyiceberg is not installed.
        DataError: the table cannot be read.
    """
    try:
        for package in ("pyiceberg", "pyarrow"):
            import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{file} is an Iceberg table, which needs {error.name}; run {INSTALL}"
        ) from error

    def explain(error: BaseException) -> str:
        return f"not a readable Iceberg table ({summary(error)}); check its metadata"

    try:
        table = _iceberg_table(file)
        frame = pl.scan_iceberg(table)
        frame.collect_schema()
        snapshot = table.current_snapshot()
        state = {
            "path": file.state["path"],
            "table": str(table.metadata.table_uuid),
            "version": None if snapshot is None else snapshot.snapshot_id,
        }
    except DataError:
        raise
    except Exception as error:  # pyiceberg raises errors of many kinds
        raise unreadable(file, error, explain) from error
    if snapshot is None:
        raise DataError(f"{file} has no rows; check the table")
    return Source(file.name, frame, None, explain, state=state, file=file)


def _iceberg_table(file: DataFile) -> Any:
    if file.location.startswith(CATALOG):
        from pyiceberg.catalog import load_catalog

        catalog, _, name = file.location.removeprefix(CATALOG).partition("/")
        if not catalog or not name:
            raise DataError(f"{file} must be {CATALOG}CATALOG/NAMESPACE.TABLE")
        return load_catalog(catalog).load_table(name)
    from pyiceberg.table import StaticTable

    path = Path(file.location)
    return StaticTable.from_metadata(str(_latest(path) if path.is_dir() else path))


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
