"""The engine of a preparation that numbers and sorts within a limit of memory, with DuckDB."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from candid.data import parts
from candid.data.columns import RawTable
from candid.data.config import DataConfig
from candid.data.dataset_files import check_num_ids
from candid.data.engine import (
    BYTES_PER_ROW,
    MemoryLimit,
    NumberedRows,
    size_text,
    sort_events,
)
from candid.data.parts import Parts, StoredParts, whole_users
from candid.data.readers import collect
from candid.data.readers.files import is_disk_full
from candid.data.sorted_input import SortedInput
from candid.errors import ArtifactError, CandidError

if TYPE_CHECKING:
    import duckdb

FIXED_BYTES: Final = 3 * 2**28
"""Memory outside DuckDB: the interpreter with its libraries, and a few copies of one part."""
BYTES_PER_ID: Final = 48
"""Memory of a user or an item besides its source id: counts, and the table while it is written."""
MIN_SHARE: Final = 2**27
"""Memory that DuckDB needs at least, also for each thread."""
BATCH_ROWS: Final = 2**17


class DuckDBEngine:
    """The engine whose rows are in files, sorted within a limit of memory.

    Args:
        folder: for temporary files: 20 to 100 bytes for each row; it must be empty, and the caller
            removes it.
        limit: of memory, for the whole process.
        config: names the interactions, for messages.
    """

    def __init__(self, folder: Path, limit: MemoryLimit, config: DataConfig) -> None:
        self._folder, self._limit, self._origin = folder, limit, config.origin
        self._rows = folder / "rows.parquet"
        self._ids_bytes = 0
        self._user_bytes = 0

    def number(self, table: RawTable, query: pl.LazyFrame, config: DataConfig) -> NumberedRows:
        """Read the rows and number their users and items by ascending source id."""
        self._schema = query.collect_schema()
        sink = query.sink_parquet(
            self._rows, lazy=True, compression="lz4", statistics=False, maintain_order=True
        )
        try:
            collect(sink, table.sources)
        except ArtifactError as error:
            raise _no_space() from error
        names = [name for name in ("time", "order") if name in self._schema]
        counts = [f"count(*) - count({_quoted(name)})" for name in names]
        with self._connection() as connection:
            self._users, largest_user = self._distinct(connection, "user")
            self._items, _ = self._distinct(connection, "item")
            self._reserve_largest_user(*largest_user)
            num_rows, *nulls = connection.execute(
                f"SELECT {', '.join(['count(*)', *counts])} FROM {_files(self._rows)}"
            ).fetchall()[0]
        self._sorted = SortedInput(self._users, config) if config.is_sorted else None
        null_counts = dict(zip(names, nulls, strict=True))
        return NumberedRows(num_rows, self._users, self._items, null_counts)

    def sort(self, keys: Sequence[str], num_types: int | None) -> Iterator[pl.DataFrame]:
        """Yield the rows in parts, sorted."""
        if self._sorted is None:
            yield from whole_users(self._sort_rows(keys, num_types), parts.PART_ROWS)
        else:
            for frame in whole_users(self._read_sorted(self._sorted), parts.PART_ROWS):
                yield frame if num_types is None else sort_events(frame, keys, num_types)
        self._rows.unlink()

    def store(self, frames: Iterator[pl.DataFrame]) -> Parts:
        """Hold parts as files."""
        folder = self._folder / "parts"
        folder.mkdir()
        return StoredParts(folder, frames, self._sort_files)

    def _distinct(
        self, connection: duckdb.DuckDBPyConnection, name: str
    ) -> tuple[pl.Series, tuple[Any, int]]:
        """Return the source ids of a column, ascending, and that with most rows with their number.

        Raises:
            DataError: there are too many.
            CandidError: they do not fit into the limit of memory.
        """
        query = f"SELECT {_quoted(name)}, count(*) AS n FROM {_files(self._rows)} GROUP BY 1"
        count, largest, num_rows = connection.execute(
            f"SELECT count(*), arg_max({_quoted(name)}, n), max(n) FROM ({query})"
        ).fetchall()[0]
        check_num_ids(count, f"{name}s", self._origin)
        schema = {name: self._schema[name]}
        query = f"SELECT DISTINCT {_quoted(name)} FROM {_files(self._rows)}"
        rows = pl.concat([pl.DataFrame(schema=schema), *_batches(connection, query, schema)])
        source_ids = rows.to_series()
        self._ids_bytes += source_ids.estimated_size() + count * BYTES_PER_ID
        needed = FIXED_BYTES + self._ids_bytes + MIN_SHARE
        if needed > self._limit.size:
            raise CandidError(
                f"the {count:,} {name}s of {self._origin} need about {size_text(needed)} of "
                f"memory, more than the limit of {size_text(self._limit.size)}; set memory_limit "
                "(--memory-limit) to more"
            )
        return source_ids.sort(), (largest, num_rows or 0)

    def _reserve_largest_user(self, user: Any, num_rows: int) -> None:
        """Set memory aside for the rows of the largest user, which stand in one part.

        Raises:
            CandidError: they do not fit into the limit of memory.
        """
        # ``FIXED_BYTES`` has a part of the usual size.
        self._user_bytes = max(num_rows - parts.PART_ROWS, 0) * BYTES_PER_ROW
        needed = FIXED_BYTES + self._ids_bytes + self._user_bytes + MIN_SHARE
        if needed > self._limit.size:
            raise CandidError(
                f"user {user!r} of {self._origin} has {num_rows:,} rows, which are in memory at "
                f"once: that needs about {size_text(needed)}, more than the limit of "
                f"{size_text(self._limit.size)}; set memory_limit (--memory-limit) to more, or "
                "leave the user out of the files"
            )

    def _sort_rows(self, keys: Sequence[str], num_types: int | None) -> Iterator[pl.DataFrame]:
        """Yield the rows with ids, sorted, in batches."""
        columns = [
            f"{name}s.id AS {_quoted(name)}" if name in ("user", "item") else _quoted(name)
            for name in self._schema
        ]
        joins = [
            f"JOIN {name}s ON r.{_quoted(name)} = {name}s.source_id" for name in ("user", "item")
        ]
        order = ["users.id", *(f"r.{_quoted(key)} NULLS FIRST" for key in keys)]
        if keys and num_types is not None:
            order.append(f"r.event_type < {num_types}")
        order.append("r.file_row_number")
        with self._connection() as connection:
            for name, source_ids in (("users", self._users), ("items", self._items)):
                numbers = np.arange(len(source_ids), dtype=np.int32)
                table = pl.DataFrame({"source_id": source_ids, "id": numbers})
                connection.register(name, table.to_arrow())
            query = (
                f"SELECT {', '.join(columns)} FROM {_files(self._rows)} AS r {' '.join(joins)} "
                f"ORDER BY {', '.join(order)}"
            )
            schema = {**self._schema, "user": pl.Int32(), "item": pl.Int32()}
            yield from _batches(connection, query, schema)

    def _read_sorted(self, check: SortedInput) -> Iterator[pl.DataFrame]:
        """Yield the rows with ids, in the order of the files, in batches."""
        rows = pl.scan_parquet(self._rows, glob=False, hive_partitioning=False)
        for start in itertools.count(0, parts.PART_ROWS):
            frame = rows.slice(start, parts.PART_ROWS).collect()
            if not frame.height:
                return
            frame = frame.with_columns(
                _find(frame[name], source_ids)
                for name, source_ids in (("user", self._users), ("item", self._items))
            )
            check.check(frame)
            yield frame

    def _sort_files(
        self, files: Sequence[Path], schema: Mapping[str, pl.DataType]
    ) -> Iterator[pl.DataFrame]:
        """Sort the rows of files by user; those of a user, all in one file, keep their order."""
        columns = ", ".join(map(_quoted, schema))
        with self._connection() as connection:
            query = f'SELECT {columns} FROM {_files(*files)} ORDER BY "user", file_row_number'
            yield from whole_users(_batches(connection, query, schema), parts.PART_ROWS)

    @contextmanager
    def _connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection within the limit of memory; its errors become one sentence."""
        import duckdb

        reserved = FIXED_BYTES + self._ids_bytes + self._user_bytes
        share = max(self._limit.size - reserved, MIN_SHARE)
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{share // 2**20}MiB",
            "temp_directory": str(self._folder / "duckdb"),
            "threads": max(1, min(os.cpu_count() or 1, share // MIN_SHARE)),
            # The order is that of ORDER BY; to keep that of the files takes memory.
            "preserve_insertion_order": False,
        }
        try:
            with duckdb.connect(config=config) as connection:
                # It would be printed on stdout after two seconds.
                connection.execute("SET enable_progress_bar = false")
                yield connection
        except CandidError:
            raise
        except Exception as error:  # DuckDB and Arrow raise errors of many kinds
            text = str(error).lower()
            if is_disk_full(error) or "max_temp_directory_size" in text:
                raise _no_space() from error
            if "out of memory" in text:
                raise CandidError(
                    f"the limit of memory of {size_text(self._limit.size)} is too small to sort "
                    f"{self._origin}; set memory_limit (--memory-limit) to more"
                ) from error
            raise


def _batches(
    connection: duckdb.DuckDBPyConnection, query: str, schema: Mapping[str, pl.DataType]
) -> Iterator[pl.DataFrame]:
    """Yield the rows of a query in batches, as Polars has their types.

    DuckDB works in a thread: in the main thread Ctrl-C would have no effect until a batch is there.
    """
    with ThreadPoolExecutor(1) as pool:
        try:
            reader = pool.submit(
                lambda: iter(connection.sql(query).to_arrow_reader(BATCH_ROWS))
            ).result()
            while (batch := pool.submit(next, reader, None).result()) is not None:
                frame: Any = pl.from_arrow(batch)
                yield frame.cast(schema)
        except BaseException:
            connection.interrupt()
            raise


def _find(values: pl.Series, source_ids: pl.Series) -> pl.Series:
    """Return the position of each value in ``source_ids``, ascending, as Int32."""
    distinct = values.unique()
    ids = source_ids.search_sorted(distinct).cast(pl.Int32)
    table = pl.DataFrame({"value": distinct, "id": ids})
    found = values.to_frame("value").join(table, on="value", how="left", maintain_order="left")
    return found["id"].alias(values.name)


def _files(*paths: Path) -> str:
    """Return files as a table of SQL, with the column file_row_number."""
    quoted = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    # Otherwise a folder such as user=3 above the files would replace the column user.
    return f"read_parquet([{quoted}], file_row_number=true, hive_partitioning=false)"


def _quoted(name: str) -> str:
    return f'"{name}"'


def _no_space() -> OSError:
    """Return the error that ``atomic_folder`` turns into a sentence."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
