"""Engines of a preparation: in memory, or within a limit of memory with files on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, Protocol

import polars as pl

from candid.data import ids
from candid.data.columns import RawTable
from candid.data.config import DataConfig
from candid.data.parts import MemoryParts, Parts, sort_rows
from candid.data.sorted_input import SortedInput
from candid.errors import ConfigError, DataError

ENGINES: Final = ("auto", "memory", "duckdb")
INSTALL: Final = "pip install 'candid-retrieval[bigdata]'"
BYTES_PER_ROW: Final = 64
"""Memory that a row takes at the peak of a preparation in memory, measured."""
BYTES_PER_DEALT_ROW: Final = 2
"""Memory that a row takes while a cross-validation deals interactions to up to 65,536 folds."""
MIN_LIMIT: Final = 2**30
"""Smallest limit of memory."""
MAX_ROWS: Final = 2**32 - 1
"""Rows that a data frame in memory can number."""
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class NumberedRows:
    """Users and items of rows that an engine has read.

    Attributes:
        num_rows: rows.
        users: source id of each user, ascending.
        items: source id of each item, ascending.
        null_counts: empty values of the columns time and order, where there are these columns.
    """

    num_rows: int
    users: pl.Series
    items: pl.Series
    null_counts: Mapping[str, int]


class Engine(Protocol):
    """Steps of a preparation that need all rows at once; called once each, in this order."""

    def number(self, table: RawTable, query: pl.LazyFrame, config: DataConfig) -> NumberedRows:
        """Read the rows and number their users and items by ascending source id.

        Args:
            table: source of ``query``.
            query: columns user and item (Int64, UInt64 or String), and any others.
            config: settings.

        Raises:
            DataError: there are too many users or items.
        """

    def sort(self, keys: Sequence[str], num_types: int | None) -> Iterator[pl.DataFrame]:
        """Yield the rows, with users and items as ids (Int32), in parts that divide no user.

        They are sorted by user, then ``keys``, empty values first; ties keep the order of the
        files.

        Args:
            keys: columns.
            num_types: an event type from this one on comes before others of the same ``keys``;
                None: all are alike.

        Raises:
            DataError: the rows of the files are not sorted although the config states it.
        """

    def store(self, frames: Iterator[pl.DataFrame]) -> Parts:
        """Hold parts, in ascending order of users."""


class MemoryEngine:
    """The engine whose rows are in memory, about 64 bytes each at the peak."""

    _sorted: SortedInput | None = None

    def __init__(self) -> None:
        self._frames: list[pl.DataFrame] = []

    def number(self, table: RawTable, query: pl.LazyFrame, config: DataConfig) -> NumberedRows:
        """Read the rows and number their users and items by ascending source id."""
        frame, source_ids = ids.encode_ids(table, query, config.origin)
        users, items = source_ids["user"], source_ids["item"]
        names = [name for name in ("time", "order") if name in frame.columns]
        self._frames.append(frame)
        if config.is_sorted:
            self._sorted = SortedInput(users, config)
        nulls: dict[str, int] = {name: frame[name].null_count() for name in names}
        return NumberedRows(frame.height, users, items, nulls)

    def sort(self, keys: Sequence[str], num_types: int | None) -> Iterator[pl.DataFrame]:
        """Yield all rows, sorted."""
        if self._sorted is not None:
            self._sorted.check(self._frames[0])
        # Without a variable, which would hold the rows until the end of the preparation.
        yield sort_events(self._frames.pop(), keys, num_types)

    def store(self, frames: Iterator[pl.DataFrame]) -> Parts:
        """Hold the rows in one part."""
        return MemoryParts(frames)


def sort_events(frame: pl.DataFrame, keys: Sequence[str], num_types: int | None) -> pl.DataFrame:
    """Sort rows in memory; the arguments are those of ``Engine.sort``."""
    if keys and num_types is not None:
        frame = frame.sort(pl.col("event_type") < num_types, maintain_order=True)
    return sort_rows(frame, [pl.col(key) for key in keys])


@dataclass(frozen=True)
class MemoryLimit:
    """Memory that a preparation may take.

    Attributes:
        size: bytes.
        is_given: whether the caller named it; otherwise it is half of the memory that is available.
    """

    size: int
    is_given: bool


def parse_limit(limit: int | str | None, engine: str) -> MemoryLimit:
    """Return the limit of memory of a preparation.

    Args:
        limit: bytes, or text with a unit such as "2GiB" or "500 MB" (both of powers of 1,024);
            None: half of the memory that is available now.
        engine: that the limit is for.

    Raises:
        ConfigError: not a size, too small, or without effect, or an unknown engine.

    Example:
        >>> parse_limit("2GiB", "duckdb").size
        2147483648
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if limit is None:
        return MemoryLimit(max(available_memory() // 2, MIN_LIMIT), False)
    if engine == "memory":
        raise ConfigError('memory_limit has no effect with engine = "memory"; remove one of them')
    match = _SIZE.fullmatch(str(limit))
    if match is None:
        raise ConfigError(f"memory_limit must be a size such as 2GiB, got {limit!r}")
    # DuckDB reads no larger number.
    size = min(int(Fraction(match[1]) * _UNITS[match[2].upper()]), 2**62)
    if size < MIN_LIMIT:
        raise ConfigError(f"memory_limit must be at least {size_text(MIN_LIMIT)}, got {limit!r}")
    return MemoryLimit(size, True)


def check_engine(engine: str, out: Path | None) -> None:
    """Refuse an engine that cannot work, before the files are read.

    Args:
        engine: as the caller set it.
        out: folder of the dataset; None for a dataset in memory.

    Raises:
        ConfigError: the engine is not installed, or needs a folder.
    """
    if engine != "duckdb":
        return
    if out is None:
        raise ConfigError('engine = "duckdb" writes a dataset to disk; set out to a folder')
    if not _has_duckdb():
        raise ConfigError(f'engine = "duckdb" needs duckdb and pyarrow; run {INSTALL}')


def choose(
    engine: str, num_rows: int, limit: MemoryLimit, out: Path | None, config: DataConfig
) -> Literal["memory", "duckdb"]:
    """Return the engine of a preparation.

    "auto" chooses memory where 64 bytes for each row fit into the limit, or without a folder.

    Args:
        engine: as the caller set it; ``check_engine`` has accepted it.
        num_rows: rows to read.
        limit: of memory.
        out: folder of the dataset; None for a dataset in memory.
        config: settings.

    Raises:
        ConfigError: the engine is not installed, or cannot make the split.
        DataError: there are too many rows for the memory.
    """
    needed = num_rows * BYTES_PER_ROW
    if engine == "auto":
        fits = needed <= limit.size and num_rows <= MAX_ROWS
        engine = "memory" if fits or out is None else "duckdb"
        if engine == "duckdb" and not _has_duckdb():
            raise ConfigError(
                f"{num_rows:,} rows of {config.origin} need about {size_text(needed)} of memory, "
                f"more than the limit of {size_text(limit.size)}; to prepare them on disk run "
                f'{INSTALL}, or set engine = "memory" (candid prepare --engine memory)'
            )
    if engine == "duckdb":
        split = config.split
        dealt = num_rows * BYTES_PER_DEALT_ROW if split.unit == "interaction" else 0
        if split.kind == "cross-validation" and dealt > limit.size // 2:
            raise ConfigError(
                f'a cross-validation with split.unit = "interaction" deals all rows at once, and '
                f"{num_rows:,} rows take {size_text(dealt)}, more than half of the limit of memory "
                f"of {size_text(limit.size)}; set a larger memory_limit (--memory-limit), "
                'engine = "memory", or split.unit = "user"'
            )
        return "duckdb"
    if num_rows > MAX_ROWS:
        raise DataError(
            f"{config.origin} has {num_rows:,} rows, but at most {MAX_ROWS:,} are prepared in "
            'memory; use engine = "duckdb" with a folder, or leave out old interactions'
        )
    return "memory"


def _has_duckdb() -> bool:
    return find_spec("duckdb") is not None and find_spec("pyarrow") is not None


def available_memory() -> int:
    """Return the bytes of memory that are free for this process, within the limit of its cgroup."""
    try:
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(
            line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines()
        )
        return min(available, limit - used + int(statistics["inactive_file"]))
    except (OSError, KeyError, ValueError):  # no limit
        return available


def size_text(size: int) -> str:
    """Return a number of bytes as text, such as 1.5 GiB."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 2**20:.3g} MiB"
