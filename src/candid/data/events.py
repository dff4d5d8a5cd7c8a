"""Interactions in memory: dense ids, in order, filtered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import filters, ids, negatives
from candid.data.columns import RawTable
from candid.data.config import DataConfig
from candid.data.dataset import Role
from candid.data.event_types import (
    encode_event_types,
    event_type_names,
    interaction_types,
    is_target,
)
from candid.data.ids import EarlierIds, append_new
from candid.data.readers import check_lines
from candid.data.rows import ParsedRows, parse_rows
from candid.data.split_config import SplitConfig
from candid.errors import DataError

UNASSIGNED = 255
"""Role code of a row without a role."""


@dataclass
class Events:
    """Interactions grouped by user, in order of use.

    Attributes:
        frame: E rows; user, item (Int32 ids), then as declared time (Int64 microseconds),
            weight (Float32), role (UInt8, column splits only), event_type (UInt8), negatives (lists
            of item ids before filtering, see ``new_item_ids``), place (UInt32, see
            ``keep_order``).
        users: source id of each user, ascending until ``keep_ids``.
        items: source id of each item, ascending until ``keep_ids``.
        origin: source of the interactions, for messages.
        rows_read: rows of the files.
        dropped: reason -> number of rows.
        time_unit: form of times that are numbers, see ``ParsedRows``.
        tied: rows that only their place in the file orders among the rows of their user; 0
            without time and order.
        event_types: names of the event types, by code.
        out_of_order: column splits only: rows that are earlier in time or order than the row
            before them, because rows are sorted by role first.
        new_item_ids: item id before filtering -> item id now, -1 if the item was removed.
        negatives_left_out: reason -> number of negatives that were left out.
        retired_items: [number of items] bool, set by ``keep_ids``; None: no item is retired.
    """

    frame: pl.DataFrame
    users: pl.Series
    items: pl.Series
    origin: str
    rows_read: int
    dropped: dict[str, int] = field(default_factory=dict)
    time_unit: str | None = None
    tied: int = 0
    event_types: tuple[str, ...] = ()
    out_of_order: int = 0
    new_item_ids: npt.NDArray[np.int32] = field(init=False)
    negatives_left_out: dict[str, int] = field(default_factory=dict)
    retired_items: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        self.new_item_ids = np.arange(len(self.items), dtype=np.int32)

    def ids(self, name: str) -> npt.NDArray[np.int32]:
        """[E] int32, column ``user`` or ``item``."""
        return self.frame[name].to_numpy()

    def keep_order(self) -> None:
        """Add the column ``place``: the number of each row now, before a sort by role."""
        place = pl.int_range(pl.len(), dtype=pl.UInt32).alias("place")
        self.frame = self.frame.with_columns(place)

    def order_ranks(self) -> npt.NDArray[np.int32] | None:
        """Place of each row among those of its user before ``keep_order``: [E], from 0.

        None where the rows have that order.
        """
        if "place" not in self.frame.columns:
            return None
        users = self.ids("user")
        order = np.lexsort((self.frame["place"].to_numpy(), users))
        rows = np.arange(len(users))
        if np.array_equal(order, rows):
            return None
        starts = np.searchsorted(users, users)
        ranks = np.empty(len(users), dtype=np.int32)
        ranks[order] = rows - starts
        return ranks

    def filter(self, reason: str, is_kept: npt.NDArray[np.bool_]) -> None:
        """Drop rows, and renumber users and items without gaps.

        Args:
            reason: name of the filter; key of ``dropped``.
            is_kept: [E], False for rows to drop.

        Raises:
            DataError: all rows are dropped.
        """
        dropped = int(len(is_kept) - is_kept.sum())
        if not dropped:
            return
        self.dropped[reason] = self.dropped.get(reason, 0) + dropped
        if dropped == len(is_kept):
            raise DataError(
                f"no interaction of {self.origin} remains: {reason} drops the last {dropped:,}; "
                "relax it"
            )
        frame = self.frame.filter(pl.Series(is_kept))
        user, present_users = filters.compact(frame["user"].to_numpy())
        item, present_items = filters.compact(frame["item"].to_numpy())
        self.frame = frame.with_columns(pl.Series("user", user), pl.Series("item", item))
        self.users = self.users.gather(present_users)
        self.items = self.items.gather(present_items)
        # The last entry, -1, stands for every item above the last one that remains.
        new_ids = np.full(int(present_items[-1]) + 2, -1, dtype=np.int32)
        new_ids[present_items] = np.arange(len(present_items), dtype=np.int32)
        self.new_item_ids = new_ids[np.minimum(self.new_item_ids, len(new_ids) - 1)]

    def keep_ids(self, earlier: EarlierIds) -> dict[str, dict[str, int]]:
        """Renumber users and items: those of an earlier dataset keep their ids, new ones follow.

        Users and items of the earlier dataset without an interaction here keep their place. Rows
        are grouped by user again, in the new order of users.

        Returns:
            for users and for items the numbers kept, new and retired (without an interaction).

        Raises:
            DataError: the ids of the earlier dataset are of another type.
        """
        origin = earlier.origin
        users, user_ids = append_new(earlier.users, self.users, "user", origin)
        items, item_ids = append_new(earlier.items, self.items, "item", origin)
        report = {}
        for name, before, now, total in (
            ("users", earlier.users, self.users, users),
            ("items", earlier.items, self.items, items),
        ):
            new = len(total) - len(before)
            report[name] = {
                "kept": len(now) - new,
                "new": new,
                "retired": len(total) - len(now),
            }
        frame = self.frame.with_columns(
            pl.Series("user", user_ids[self.ids("user")]),
            pl.Series("item", item_ids[self.ids("item")]),
        )
        self.frame = _sort(frame, [])
        self.users, self.items = users, items
        is_retired = np.ones(len(items), dtype=np.bool_)
        is_retired[item_ids] = False
        self.retired_items = is_retired if is_retired.any() else None
        # Entry -1 stays: a removed item.
        self.new_item_ids = np.append(item_ids, np.int32(-1))[self.new_item_ids]
        return report


def load_events(table: RawTable, config: DataConfig, report: Callable[[str], None]) -> Events:
    """Read, encode, order and filter the interactions.

    Memory holds the encoded rows (16 to 25 bytes each, a few copies while sorting) and the
    distinct ids, never the columns of the files.

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
    report(f"numbering users and items of {parsed.num_rows:,} rows")
    query = parsed.query
    if config.split.kind == "column":
        query = query.with_columns(_role_codes(table, config.split))
    event_types: tuple[str, ...] = ()
    if config.event_type is not None:
        event_types = event_type_names(table, config)
        query, is_used = encode_event_types(query, event_types, config)
        left_out = table.run(parsed.query.select((~is_used).sum())).item()
        if left_out:
            parsed.dropped["event_type"] = left_out
            _check_any_left(parsed, config)
    frame, source_ids = ids.encode_ids(table, query)
    _check_dates(table, frame, parsed)
    order = [pl.col(key) for key in ("time", "order") if key in table.columns]
    interactions = interaction_types(event_types, config)
    has_impressions = len(interactions) < len(event_types)
    if order and has_impressions:
        # An impression at the time of a choice was shown before the choice.
        frame = frame.sort(pl.col("event_type") < len(interactions), maintain_order=True)
    report(f"sorting {frame.height:,} rows")
    frame = _sort(frame, order)
    num_unknown = 0
    if config.negatives is not None:
        frame, num_unknown = negatives.encode_negatives(frame, source_ids["item"], config.negatives)
    events = Events(
        frame,
        source_ids["user"],
        source_ids["item"],
        config.origin,
        parsed.rows_read,
        parsed.dropped,
        parsed.time_unit,
        event_types=event_types,
    )
    if num_unknown:
        events.negatives_left_out["of_no_interaction"] = num_unknown
    if has_impressions:
        _attach_impressions(events, interactions, config)
    if "role" in table.columns:
        # After the impressions were removed: those have no role.
        events.keep_order()
        events.frame = _sort(events.frame, [pl.col("role"), *order])
    report(f"filtering {events.frame.height:,} rows")
    _filter(events, config)
    for name in ("time", "order", "role"):
        if name in table.columns:
            _check_complete(table, parsed, events, name)
    keys = [name for name in ("time", "order") if name in table.columns]
    if keys:
        events.tied = _count_tied(events.frame, keys)
    if keys and "role" in table.columns:
        events.out_of_order = _out_of_order(events.frame, keys)
    if "order" in table.columns:
        events.frame = events.frame.drop("order")
    return events


def _check_any_left(parsed: ParsedRows, config: DataConfig) -> None:
    left_out = sum(n for reason, n in parsed.dropped.items() if reason != "empty_lists")
    if parsed.num_rows == left_out:
        raise DataError(
            f"no interaction of {config.origin} remains: "
            f"{', '.join(f'{k} drops {v:,} rows' for k, v in parsed.dropped.items())}; "
            "lower min_rating, fill the empty values or keep more event_types"
        )


def _attach_impressions(events: Events, interactions: tuple[str, ...], config: DataConfig) -> None:
    """Turn impressions into negatives; the event types ``interactions`` stay."""
    codes = events.frame["event_type"].to_numpy()
    is_impression = codes >= len(interactions)
    targets = ~is_impression & is_target(codes, events.event_types, config)
    events.frame, left_out = negatives.attach_impressions(events.frame, is_impression, targets)
    events.negatives_left_out |= left_out
    events.event_types = interactions
    events.filter("shown", ~is_impression)


def _sort(frame: pl.DataFrame, keys: list[pl.Expr]) -> pl.DataFrame:
    """Sort by user, then ``keys``; ties keep the order of the file."""
    if keys:
        frame = frame.sort(*keys, maintain_order=True)
    # A number with the user in its high bits and the row in its low bits sorts by user and keeps
    # the order of rows. It is faster than a sort by columns. Rows fit: ``rows.MAX_ROWS``.
    packed = frame["user"].to_numpy().astype(np.int64) << 32
    packed |= np.arange(len(packed), dtype=np.int64)
    rows = pl.Series(packed).sort().to_numpy().astype(np.uint32)
    return frame.select(pl.all().gather(pl.Series(rows)))


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
    frame = events.frame
    if config.split.drop_unassigned and "role" in frame.columns:
        events.filter("unassigned", frame["role"].to_numpy() != UNASSIGNED)
    if config.deduplicate != "none":
        pairs = events.ids("user").astype(np.int64) * len(events.items) + events.ids("item")
        if events.event_types:
            # A view and a purchase of the same item do not repeat each other.
            pairs = pairs * len(events.event_types) + frame["event_type"].to_numpy()
        pair = pl.Series(pairs)
        first = config.deduplicate == "first"
        is_kept = pair.is_first_distinct() if first else pair.is_last_distinct()
        events.filter("repeated", is_kept.to_numpy())
    user_core, item_core = config.cores
    if user_core > 1 or item_core > 1:
        mask = filters.k_core(events.ids("user"), events.ids("item"), user_core, item_core)
        events.filter("k_core", mask)
    if config.min_history > 1:
        events.filter("min_history", filters.min_history(events.ids("user"), config.min_history))


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


def _check_dates(table: RawTable, frame: pl.DataFrame, parsed: ParsedRows) -> None:
    """Refuse times that cannot be parsed or are too large, and an order of dates likewise."""
    for name in ("time", "order"):
        dtype = table.schema.get(name)
        if dtype is None or isinstance(dtype, pl.Datetime) or not frame[name].null_count():
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
    missing = events.frame.filter(pl.col(name) == UNASSIGNED if name == "role" else empty)
    if not missing.height:
        return
    check_lines(table.sources)
    same = pl.lit(True)
    for key, source_ids in (("user", events.users), ("item", events.items)):
        same &= parsed.columns[key] == pl.lit(source_ids[missing[key][0]], source_ids.dtype)
    if name != "role":
        empty = parsed.columns[name].is_null()
    if table.schema[name] == pl.Float64:
        empty |= ~pl.col(name).is_finite()
    raise DataError(
        f"column {table.columns[name]!r} has {missing.height:,} empty values, one in "
        f"{table.locate(empty & same, name)}; fill them or set "
        f"{'split.drop_unassigned' if name == 'role' else 'drop_nulls'}"
    )
