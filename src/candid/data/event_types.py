"""Kinds of interaction: which are targets, which are only history, and what each weighs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data.columns import RawTable
from candid.data.config import DataConfig, EventTypeConfig
from candid.errors import DataError

MOST = 255
"""Kinds that a dataset can tell apart."""


def event_type_names(table: RawTable, config: DataConfig) -> tuple[str, ...]:
    """The kinds to read, those of interactions first, each part ascending; the place is the code.

    Raises:
        DataError: a value that ``data.event_types`` does not list, or too many.
    """
    counts = table.run(table.frame.group_by("event_type").len()).drop_nulls().sort("event_type")
    found = dict(zip(counts["event_type"], counts["len"], strict=True))
    if config.event_types is None:
        if len(found) > MOST:
            raise DataError(
                f"column {config.event_type!r} of {config.interactions} has {len(found):,} values, "
                f"more than the {MOST} kinds of interaction that can be told apart; name another "
                "column"
            )
        return tuple(found)
    unknown = {name: count for name, count in found.items() if name not in config.event_types}
    if unknown:
        shown = ", ".join(
            f"{name!r} ({count:,} rows)" for name, count in list(unknown.items())[:10]
        )
        raise DataError(
            f"column {config.event_type!r} of {config.interactions} holds {shown}, which data.event_types "
            f'does not list; known: {", ".join(config.event_types)} (use = "drop" leaves one out)'
        )
    used = sorted(
        name for name, event_type in config.event_types.items() if event_type.use != "drop"
    )
    return tuple(sorted(used, key=lambda name: _of(config, name).use == "negative"))


def encode_event_types(
    query: pl.LazyFrame, names: tuple[str, ...], config: DataConfig
) -> tuple[pl.LazyFrame, pl.Expr]:
    """Replace the names by codes, and multiply the weights.

    Args:
        query: with column event_type (String), and weight (Float32) if declared.
        names: from ``event_type_names``.
        config: what each is used for.

    Returns:
        the query with event_type as UInt8, and weight where any differs from 1; and whether a
        row's kind is kept (of ``query`` as given).
    """
    is_kept = pl.col("event_type").is_in(names)
    codes = {name: code for code, name in enumerate(names)}
    columns = [pl.col("event_type").replace_strict(codes, default=0, return_dtype=pl.UInt8)]
    weights = {name: _of(config, name).weight for name in names}
    if any(weight != 1 for weight in weights.values()):
        weight = pl.col("event_type").replace_strict(weights, default=1.0, return_dtype=pl.Float32)
        has_weight = "weight" in query.collect_schema().names()
        columns.append((weight * pl.col("weight") if has_weight else weight).alias("weight"))
    return query.filter(is_kept).with_columns(columns), is_kept


def interactions_among(names: tuple[str, ...], config: DataConfig) -> tuple[str, ...]:
    """The kinds that are interactions: all but those that only say what was shown."""
    return tuple(name for name in names if _of(config, name).use != "negative")


def targets_among(names: tuple[str, ...], config: DataConfig) -> tuple[str, ...]:
    """The kinds that are trained on and held out."""
    return tuple(name for name in names if _of(config, name).use == "target")


def is_target(
    codes: npt.NDArray[np.uint8], names: tuple[str, ...], config: DataConfig
) -> npt.NDArray[np.bool_]:
    """Which interactions [E] are of a kind that is trained on and held out."""
    targets = targets_among(names, config)
    found: npt.NDArray[np.bool_] = np.array([name in targets for name in names])[codes]
    return found


def _of(config: DataConfig, name: str) -> EventTypeConfig:
    return EventTypeConfig() if config.event_types is None else config.event_types[name]
