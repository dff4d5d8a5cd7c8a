"""Interactions with dense ids: numbered, in order, filtered, in memory or in parts on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import filters
from candid.data.chunks import add_counts
from candid.data.columns import RawTable
from candid.data.config import DataConfig
from candid.data.dataset import Role
from candid.data.engine import Engine
from candid.data.event_types import (
    encode_event_types,
    event_type_names,
    interaction_types,
)
from candid.data.parts import Parts
from candid.data.readers import check_lines
from candid.data.rows import ParsedRows, parse_rows
from candid.data.split_config import SplitConfig
from candid.data.user_steps import UNASSIGNED, UserSteps
from candid.errors import DataError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CheckedRows:
    """Rows whose columns are checked, and that are not loaded yet.

    Attributes:
        table: the files.
        parsed: the rows to keep, typed.
        query: those of ``parsed``, with role (UInt8) and event_type (UInt8) as codes.
        event_types: names of the event types, by code.
    """

    table: RawTable
    parsed: ParsedRows
    query: pl.LazyFrame
    event_types: tuple[str, ...]


@dataclass
class Events:
    """Interactions grouped by user, in order of use.

    Users and items are numbered once, by ascending source id, when they are loaded. After a filter
    some of them have no interaction; ``number`` closes the gaps.

    Attributes:
        parts: E rows; user, item (Int32), then as declared time (Int64 microseconds), weight
            (Float32), role (UInt8, column splits only), event_type (UInt8), negatives (lists of
            items), place (UInt32, see ``user_steps.keep_order``).
        users: source id of each user as loaded, ascending.
        items: source id of each item as loaded, ascending.
        origin: source of the interactions, for messages.
        rows_read: rows of the files.
        dropped: reason -> number of rows.
        time_unit: form of times that are numbers, see ``ParsedRows``.
        tied: rows that only their place in the file orders among the rows of their user; 0
            without time and order.
        event_types: names of the event types, by code.
        out_of_order: column splits only: rows that are earlier in time or order than the row
            before them, because rows are sorted by role first.
        negatives_left_out: reason -> number of negatives that were left out.
    """

    parts: Parts
    users: pl.Series
    items: pl.Series
    origin: str
    rows_read: int
    dropped: dict[str, int] = field(default_factory=dict)
    time_unit: str | None = None
    tied: int = 0
    event_types: tuple[str, ...] = ()
    out_of_order: int = 0
    negatives_left_out: dict[str, int] = field(default_factory=dict)
    _counts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the columns of ``parts``."""
        return next(self.parts.frames()).columns

    @property
    def user_counts(self) -> npt.NDArray[np.int64]:
        """Number of rows of each user."""
        return self._count_rows()[0]

    @property
    def item_counts(self) -> npt.NDArray[np.int64]:
        """Number of rows of each item."""
        return self._count_rows()[1]

    def _count_rows(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if self._counts is None:
            counts = np.zeros(len(self.users), np.int64), np.zeros(len(self.items), np.int64)
            for frame in self.parts.frames("user", "item"):
                add_counts(counts[0], frame["user"].to_numpy())
                add_counts(counts[1], frame["item"].to_numpy())
            self._counts = counts
        return self._counts

    def set_role(self, role_of: Callable[[pl.DataFrame], npt.NDArray[np.uint8]]) -> None:
        """Set the column ``role`` of each part."""
        self.parts.update(
            lambda frame: frame.with_columns(pl.Series("role", role_of(frame), dtype=pl.UInt8))
        )

    def filter(self, reason: str, is_kept: Callable[[pl.DataFrame], Mask]) -> None:
        """Drop rows.

        Args:
            reason: name of the filter; key of ``dropped``.
            is_kept: returns, for a part, False for rows to drop.

        Raises:
            DataError: all rows are dropped.
        """

        def kept(frame: pl.DataFrame) -> pl.DataFrame:
            mask = is_kept(frame)
            return frame if mask.all() else frame.filter(pl.Series(mask))

        before = self.parts.num_rows
        self.parts.update(kept)
        self._counts = None
        self.count_dropped(reason, before - self.parts.num_rows, before)

    def count_dropped(self, reason: str, dropped: int, before: int) -> None:
        """Add to ``dropped``.

        Args:
            reason: name of the filter.
            dropped: rows that it dropped.
            before: rows before it.

        Raises:
            DataError: all rows are dropped.
        """
        if not dropped:
            return
        self.dropped[reason] = self.dropped.get(reason, 0) + dropped
        if dropped == before:
            raise DataError(
                f"no interaction of {self.origin} remains: {reason} drops the last {dropped:,}; "
                "relax it"
            )


def check_rows(table: RawTable, config: DataConfig, report: Callable[[str], None]) -> CheckedRows:
    """Check the columns of the interactions, in a few passes over the files.

    Args:
        table: the interactions as the files have them.
        config: settings.
        report: called with one line before each step.

    Raises:
        DataError: a value is invalid, or no interaction remains.
    """
    report(f"checking the columns of {config.origin}")
    parsed = parse_rows(table, config)
    _check_any_left(parsed, config)
    query = parsed.query
    if config.split.kind == "column":
        query = query.with_columns(_role_codes(table, config.split))
    event_types: tuple[str, ...] = ()
    if config.event_type is not None:
        event_types = event_type_names(table, config)
        query, is_used = encode_event_types(query, event_types, config)
        left_out = table.run(parsed.query.select((~is_used).cast(pl.Int64).sum())).item()
        if left_out:
            parsed.dropped["event_type"] = left_out
            _check_any_left(parsed, config)
    return CheckedRows(table, parsed, query, event_types)


def load_events(
    rows: CheckedRows, config: DataConfig, engine: Engine, report: Callable[[str], None]
) -> Events:
    """Read, encode, order and filter the interactions.

    Args:
        rows: the interactions.
        config: settings.
        engine: numbers, sorts and holds the rows.
        report: called with one line before each step.

    Raises:
        DataError: a value is invalid, or no interaction remains.
    """
    table, parsed = rows.table, rows.parsed
    report(f"numbering users and items of {parsed.num_rows:,} rows")
    numbered = engine.number(table, rows.query, config)
    _check_dates(table, numbered.null_counts, parsed)
    keys = [name for name in ("time", "order") if name in table.columns]
    num_types = len(interaction_types(rows.event_types, config))
    has_impressions = num_types < len(rows.event_types)
    report(f"sorting {numbered.num_rows:,} rows")
    steps = UserSteps(
        config, rows.event_types, numbered.items, num_types if has_impressions else None
    )
    # An impression at the time of a choice was shown before the choice.
    frames = engine.sort(keys, num_types if has_impressions else None)
    parts = engine.store(map(steps, frames))
    events = Events(
        parts,
        numbered.users,
        numbered.items,
        config.origin,
        parsed.rows_read,
        parsed.dropped,
        parsed.time_unit,
        event_types=rows.event_types[:num_types],
    )
    events.negatives_left_out |= steps.negatives_left_out()
    remaining = steps.num_rows
    for reason, dropped in steps.dropped.items():
        events.count_dropped(reason, dropped, remaining)
        remaining -= dropped
    report(f"filtering {parts.num_rows:,} rows")
    _filter(events, config)
    for name in ("time", "order", "role"):
        if name in table.columns:
            _check_complete(table, parsed, events, name)
    if keys:
        events.tied = sum(_count_tied(f, keys) for f in parts.frames("user", *keys))
    if keys and "role" in table.columns:
        events.out_of_order = sum(_out_of_order(f, keys) for f in parts.frames("user", *keys))
    if "order" in table.columns:
        parts.update(lambda frame: frame.drop("order"))
    return events


def _check_any_left(parsed: ParsedRows, config: DataConfig) -> None:
    left_out = sum(n for reason, n in parsed.dropped.items() if reason != "empty_lists")
    if parsed.num_rows == left_out:
        raise DataError(
            f"no interaction of {config.origin} remains: "
            f"{', '.join(f'{k} drops {v:,} rows' for k, v in parsed.dropped.items())}; "
            "lower min_rating, fill the empty values or keep more event_types"
        )


def _role_codes(table: RawTable, split: SplitConfig) -> pl.Expr:
    """Map role names to ``Role`` codes.

    Raises:
        DataError: ``split.roles`` does not map a value.
    """
    values = table.run(table.frame.group_by("role").len())
    counts = dict(zip(values["role"], values["len"], strict=True))
    unknown = sorted(value for value in counts if value is not None and value not in split.roles)
    if unknown:
        examples = ", ".join(f"{value!r} ({counts[value]:,} rows)" for value in unknown[:10])
        raise DataError(
            f"column {split.column!r} contains {examples}, which split.roles does not map; "
            f"known: {', '.join(split.roles)}"
        )
    codes = {value: int(Role[role.upper()]) for value, role in split.roles.items()}
    return pl.col("role").replace_strict(codes, default=UNASSIGNED, return_dtype=pl.UInt8)


def _filter(events: Events, config: DataConfig) -> None:
    """Apply the filters that count the interactions of users and items."""
    user_core, item_core = config.cores
    if user_core > 1 or item_core > 1:
        is_user, is_item = filters.k_core(
            lambda: (
                (frame["user"].to_numpy(), frame["item"].to_numpy())
                for frame in events.parts.frames("user", "item")
            ),
            len(events.users),
            len(events.items),
            user_core,
            item_core,
        )
        events.filter(
            "k_core",
            lambda frame: is_user[frame["user"].to_numpy()] & is_item[frame["item"].to_numpy()],
        )
    if config.min_history > 1:
        has_history = events.user_counts >= config.min_history
        events.filter("min_history", lambda frame: has_history[frame["user"].to_numpy()])


def _out_of_order(frame: pl.DataFrame, keys: Sequence[str]) -> int:
    """Count rows with smaller keys than the row before them of the same user."""
    is_less, is_equal = pl.lit(False), pl.col("user") == pl.col("user").shift()
    for key in keys:
        is_less |= is_equal & (pl.col(key) < pl.col(key).shift())
        is_equal &= pl.col(key) == pl.col(key).shift()
    return int(frame.select(is_less.sum()).item())


def _count_tied(frame: pl.DataFrame, keys: Sequence[str]) -> int:
    """Count rows whose keys are those of the row before or after them of the same user."""
    same = pl.all_horizontal(pl.col(key) == pl.col(key).shift() for key in ("user", *keys))
    same = same.fill_null(False)
    return int(frame.select((same | same.shift(-1, fill_value=False)).sum()).item())


def _check_dates(table: RawTable, null_counts: Mapping[str, int], parsed: ParsedRows) -> None:
    """Refuse times that cannot be parsed or are too large, and an order of dates likewise."""
    for name in ("time", "order"):
        dtype = table.schema.get(name)
        if dtype is None or isinstance(dtype, pl.Datetime) or not null_counts[name]:
            continue
        value = pl.col(name)
        number = value.cast(pl.Float64, strict=False).fill_nan(None)
        is_null = parsed.columns[name].is_null()
        faults = [(number.abs() >= 2.0**63, "too large for a time")] if name == "time" else []
        if name in parsed.dates_as_text:
            faults.append((value.is_not_null() & is_null, "not an ISO date"))
        elif name == "time":
            faults.append((value.is_not_null() & number.is_null(), "not a number"))
            faults.append((number.is_not_null() & is_null, f"not a date {parsed.time_unit}"))
        for is_wrong, fault in faults:
            with contextlib.suppress(LookupError):
                location = table.locate(is_wrong, name)
                raise DataError(
                    f"column {table.columns[name]!r} has a value that is {fault} in {location}; "
                    "fix it"
                )


def _check_complete(table: RawTable, parsed: ParsedRows, events: Events, name: str) -> None:
    """Refuse rows that remain after filtering without time, order or role."""
    empty = pl.col(name).is_null()
    is_missing = pl.col(name) == UNASSIGNED if name == "role" else empty
    num_missing, first = 0, None
    for frame in events.parts.frames("user", "item", name):
        missing = frame.filter(is_missing)
        num_missing += missing.height
        if first is None and missing.height:
            first = missing.row(0, named=True)
    if first is None:
        return
    check_lines(table.sources)
    same = pl.lit(True)
    for key, source_ids in (("user", events.users), ("item", events.items)):
        same &= parsed.columns[key] == pl.lit(source_ids[first[key]], source_ids.dtype)
    if name != "role":
        empty = parsed.columns[name].is_null()
    if table.schema[name] == pl.Float64:
        empty |= ~pl.col(name).is_finite()
    raise DataError(
        f"column {table.columns[name]!r} has {num_missing:,} empty values, one in "
        f"{table.locate(empty & same, name)}; fill them or set "
        f"{'split.drop_unassigned' if name == 'role' else 'drop_nulls'}"
    )
