"""Event types: their codes, their use as targets or history, and their weights."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data.columns import RawTable
from candid.data.config import DataConfig, EventTypeConfig
from candid.errors import DataError

MAX_EVENT_TYPES: Final = 255
"""Event types that a dataset can hold: codes are uint8."""


def event_type_names(table: RawTable, config: DataConfig) -> tuple[str, ...]:
    """Return the names of the event types to read; the position of each is its code.

    Event types of interactions come before those of impressions (``use = "negative"``); each
    group is in ascending order.

    Raises:
        DataError: a value that ``data.event_types`` does not list, or too many values.
    """
    counts = table.run(table.frame.group_by("event_type").len()).drop_nulls().sort("event_type")
    rows_by_name = dict(zip(counts["event_type"], counts["len"], strict=True))
    if config.event_types is None:
        if len(rows_by_name) > MAX_EVENT_TYPES:
            raise DataError(
                f"column {config.event_type!r} of {config.origin} has "
                f"{len(rows_by_name):,} values, but a dataset holds at most {MAX_EVENT_TYPES} "
                "event types; name another column"
            )
        return tuple(rows_by_name)
    unknown = {name: rows for name, rows in rows_by_name.items() if name not in config.event_types}
    if unknown:
        examples = ", ".join(
            f"{name!r} ({rows:,} rows)" for name, rows in list(unknown.items())[:10]
        )
        raise DataError(
            f"column {config.event_type!r} of {config.origin} contains {examples}, which "
            f"data.event_types does not list; known: {', '.join(config.event_types)} "
            '(use = "drop" leaves one out)'
        )
    used = sorted(
        name for name, event_type in config.event_types.items() if event_type.use != "drop"
    )
    return tuple(sorted(used, key=lambda name: _config_of(config, name).use == "negative"))


def encode_event_types(
    query: pl.LazyFrame, names: tuple[str, ...], config: DataConfig
) -> tuple[pl.LazyFrame, pl.Expr]:
    """Replace names by codes, drop rows of other event types, and multiply the weights.

    Args:
        query: with column event_type (String), and weight (Float32) if declared.
        names: from ``event_type_names``.
        config: use and weight of each event type.

    Returns:
        the query with event_type as UInt8, and weight if any differs from 1; and the expression
        that is true where a row of the given ``query`` stays.
    """
    is_used = pl.col("event_type").is_in(names)
    codes = {name: code for code, name in enumerate(names)}
    columns = [pl.col("event_type").replace_strict(codes, default=0, return_dtype=pl.UInt8)]
    weights = {name: _config_of(config, name).weight for name in names}
    if any(weight != 1 for weight in weights.values()):
        weight = pl.col("event_type").replace_strict(weights, default=1.0, return_dtype=pl.Float32)
        has_weight = "weight" in query.collect_schema().names()
        columns.append((weight * pl.col("weight") if has_weight else weight).alias("weight"))
    return query.filter(is_used).with_columns(columns), is_used


def interaction_types(names: tuple[str, ...], config: DataConfig) -> tuple[str, ...]:
    """Return the event types that are interactions: all but ``use = "negative"``."""
    return tuple(name for name in names if _config_of(config, name).use != "negative")


def target_types(names: tuple[str, ...], config: DataConfig) -> tuple[str, ...]:
    """Return the event types that are training and evaluation targets."""
    return tuple(name for name in names if _config_of(config, name).use == "target")


def is_target(
    codes: npt.NDArray[np.uint8], names: tuple[str, ...], config: DataConfig
) -> npt.NDArray[np.bool_]:
    """Return whether each interaction [E] has a target event type."""
    targets = target_types(names, config)
    by_code = np.array([name in targets for name in names], dtype=np.bool_)
    mask: npt.NDArray[np.bool_] = by_code[codes]
    return mask


def _config_of(config: DataConfig, name: str) -> EventTypeConfig:
    return EventTypeConfig() if config.event_types is None else config.event_types[name]
