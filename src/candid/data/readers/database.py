"""Queries over DuckDB and PostgreSQL as tables: the rows are copied to parquet in batches."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl

from candid.data.readers.files import DataFile, no_space
from candid.data.urls import DATABASES, scheme_of, without_secrets
from candid.errors import CandidError, ConfigError, DataError

INSTALL = "pip install 'candid-retrieval[database]'"
TOKEN = re.compile(
    r"""(?P<skipped>\s+|--[^\n]*|/\*.*?\*/|;)"""
    r"""|[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|.""",
    re.DOTALL,
)
"""Parts of SQL: blanks, comments and semicolons, and everything else, with texts in one piece."""
POSITION = re.compile(r"\s*^LINE \d+:.*", re.DOTALL | re.MULTILINE)
"""The place in the statement at the end of a message, which may be a statement around the query."""


def is_database(location: str) -> bool:
    """Return whether a location is the URI of a database."""
    return scheme_of(location) in DATABASES


def find_query(uri: str, query: str) -> DataFile:
    """Describe the rows of a query.

    Args:
        uri: ``duckdb:///FILE``, ``duckdb://`` for a database in memory, or
            ``postgresql://USER@HOST/DATABASE``.
        query: one SELECT statement.

    Raises:
        ConfigError: the driver is not installed.
        DataError: the database file does not exist.
    """
    name = without_secrets(uri)
    query = _without_end(query)
    if scheme_of(uri) == "duckdb":
        path = _duckdb_path(uri)
        state = {"path": name, "unversioned": True} if path is None else _duckdb_state(name, path)
        return DataFile(name, Path(), state, copy=_copy_duckdb(name, path, query))
    driver = _import(name, "adbc_driver_postgresql.dbapi")
    _import(name, "pyarrow")
    state = {"path": name, "unversioned": True}
    return DataFile(name, Path(), state, copy=_copy_postgresql(name, uri, query, driver))


def _without_end(query: str) -> str:
    """Remove semicolons and comments at the end, so that the query can stand in parentheses."""
    ends = [part.end() for part in TOKEN.finditer(query) if not part["skipped"]]
    return query[: ends[-1]] if ends else query


def _duckdb_path(uri: str) -> Path | None:
    """Return the file of a DuckDB URI, relative as in SQLAlchemy; None for one in memory."""
    text = uri.partition("://")[2].removeprefix("/")
    if text in ("", ":memory:"):
        return None
    absolute = Path("/", text)
    return absolute if not Path(text).exists() and absolute.exists() else Path(text)


def _duckdb_state(name: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{name}: there is no database {path}; check the path")
    # Changes are in a file beside the database until DuckDB merges them.
    files = [path, path.with_name(f"{path.name}.wal")]
    statuses = [file.stat() for file in files if file.exists()]
    return {
        "path": str(path.resolve()),
        "bytes": sum(status.st_size for status in statuses),
        "mtime_ns": max(status.st_mtime_ns for status in statuses),
    }


def _copy_duckdb(name: str, path: Path | None, query: str) -> Callable[[Path], Path]:
    duckdb = _import(name, "duckdb")

    def copy(target: Path) -> Path:
        target = target.with_name("rows.parquet")
        quoted = str(target).replace("'", "''")
        try:
            with (
                duckdb.connect() if path is None else duckdb.connect(str(path), read_only=True)
            ) as connection:
                # It would be printed on stdout after two seconds.
                connection.execute("SET enable_progress_bar = false")
                _check_one_statement(name, connection.extract_statements(query))
                columns = connection.execute(f"DESCRIBE {query}").fetchall()
                casts = ", ".join(_cast(column, dtype) for column, dtype, *_ in columns)
                connection.execute(
                    f"COPY (SELECT {casts} FROM ({query}\n) AS rows) TO '{quoted}' (FORMAT parquet)"
                )
        except CandidError:
            raise
        except Exception as error:  # DuckDB raises errors of many kinds
            raise _failed(name, error) from error
        return target

    return copy


def _check_one_statement(name: str, statements: Sequence[Any]) -> None:
    if len(statements) != 1:
        raise DataError(
            f"{name}: the query has {len(statements)} statements; write one SELECT statement"
        )


def _cast(column: str, dtype: str) -> str:
    """Return a column of a query, as a type that parquet has."""
    quoted = '"' + column.replace('"', '""') + '"'
    target = {"UUID": "VARCHAR", "HUGEINT": "DECIMAL(38, 0)", "UHUGEINT": "DECIMAL(38, 0)"}
    return f"CAST({quoted} AS {target[dtype]}) AS {quoted}" if dtype in target else quoted


def _copy_postgresql(name: str, uri: str, query: str, driver: Any) -> Callable[[Path], Path]:
    def copy(target: Path) -> Path:
        folder = target.with_name("rows")
        folder.mkdir()
        try:
            with driver.connect(uri) as connection, connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")
                cursor.execute(query)
                batches = cursor.fetch_record_batch()
                for number, frame in enumerate(_frames(batches)):
                    _write(frame, folder / f"{number:08}.parquet")
        except CandidError:
            raise
        except Exception as error:  # the driver has its own errors
            raise _failed(name, error) from error
        return folder

    return copy


def _frames(batches: Any) -> Iterator[pl.DataFrame]:
    """Yield the batches of a result; the first one has no rows and the types of all."""
    import pyarrow

    schema = batches.schema
    yield _plain(pyarrow.Table.from_batches([], schema), schema)
    for batch in batches:
        yield _plain(batch, schema)


def _plain(batch: Any, schema: Any) -> pl.DataFrame:
    """Convert a batch: UUIDs to text, ``numeric`` to Decimal, or to Float64 without a scale."""
    frame: Any = pl.from_arrow(batch)
    columns = []
    for field, values in zip(schema, frame.get_columns(), strict=True):
        metadata = field.metadata or {}
        dtype = metadata.get(b"POSTGRESQL:type", b"").decode()
        if hasattr(values.dtype, "ext_storage"):
            values = values.ext.storage()
        if dtype == "uuid":
            texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in values]
            values = pl.Series(values.name, texts, dtype=pl.String)
        elif dtype == "numeric":
            values = _number(values, int(metadata.get(b"POSTGRESQL:typmod", b"-1")))
        columns.append(values)
    return pl.DataFrame(columns)


def _number(texts: pl.Series, modifier: int) -> pl.Series:
    """Parse numbers; the type modifier of PostgreSQL has precision and scale, or is -1."""
    scale = (modifier - 4) & 0x7FF
    is_exact = modifier >= 4 and scale <= 38 and (modifier - 4) >> 16 <= 38
    return texts.cast(pl.Decimal(38, scale) if is_exact else pl.Float64)


def _write(frame: pl.DataFrame, path: Path) -> None:
    try:
        frame.write_parquet(path, compression="zstd")
    except OSError as error:
        raise no_space(path, error) from error


def _import(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{name} needs {module.partition('.')[0]}, which is not installed; run {INSTALL}"
        ) from error


def _failed(name: str, error: BaseException) -> DataError:
    text = POSITION.sub("", str(error))
    reason = " ".join(text.split()) or type(error).__name__
    if len(reason) > 300:
        reason = f"{reason[:300]}…"
    return DataError(f"{name}: the query failed ({reason}); check the query and the connection")
