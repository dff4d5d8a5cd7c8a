"""The context of a query: its time, and the time and event type of the last interaction.

The time of a query is that of the target in training, that of the first held-out target in
evaluation, and the current time in serving. The context is a table like that of items, which
features of any type can read. Its columns are ``time`` (UTC), ``since`` (seconds since the last
interaction of the user, null without one), ``event_type`` (of the target: a view or a purchase)
and ``last_event_type`` (of the last interaction).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import PreparedDataset, Role
from candid.data.chunks import row_chunks
from candid.errors import ConfigError
from candid.features.protocol import FeatureConfig
from candid.features.table import FeatureTable, fit_table
from candid.features.values import Values

Ints = npt.NDArray[np.int64]

SAMPLE = 1_000_000
"""Maximum number of interactions, sampled at random, that features are fitted on."""


@dataclass(frozen=True)
class Context:
    """Encoder of the context of queries about one dataset.

    Attributes:
        dataset: with timestamps.
        table: fitted features; its values have no rows, only their form is used.
    """

    dataset: PreparedDataset
    table: FeatureTable

    def at(self, events: Ints, has_last: npt.NDArray[np.bool_]) -> dict[str, Values]:
        """Encode the context of queries whose targets are interactions of the dataset.

        Args:
            events: [B], indices of the interactions.
            has_last: [B], whether the interaction before it is the last one of the user's history;
                False for a user's first interaction, and for an empty history.
        """
        return self.table.encode(_frame_at(self.dataset, events, has_last))


def context_frame(
    times: Ints,
    last: Ints,
    has_last: npt.NDArray[np.bool_],
    event_types: pl.Series | None = None,
    last_event_types: pl.Series | None = None,
) -> pl.DataFrame:
    """Build the table that context features read.

    Args:
        times: [B] microseconds since 1970-01-01 UTC, time of each query.
        last: [B], time of the user's last interaction; ignored where ``has_last`` is False.
        has_last: [B], whether there is a last interaction.
        event_types: [B] text, event type of the target; None: unknown.
        last_event_types: [B] text, event type of the last interaction; None: unknown.
    """
    since = (times - last) / 1e6
    unknown = pl.Series([None] * 0, dtype=pl.String).extend_constant(None, len(times))
    return pl.DataFrame(
        {
            "time": pl.Series(times, dtype=pl.Int64).cast(pl.Datetime("us")),
            "since": pl.Series(np.where(has_last & (since >= 0), since, np.nan)).fill_nan(None),
            "event_type": unknown if event_types is None else event_types,
            "last_event_type": unknown if last_event_types is None else last_event_types,
        }
    )


def fit_context(configs: Mapping[str, FeatureConfig], dataset: PreparedDataset) -> FeatureTable:
    """Fit context features on the context of the training targets.

    Raises:
        ConfigError: the dataset has no times, or a feature names an unknown column.
        DataError: a feature does not support the values of its column.
    """
    frame = _frame_of_targets(dataset)
    fitted = fit_table(configs, frame, np.ones(frame.height, dtype=np.bool_), "features.context")
    return replace(fitted, values=fitted.encode(no_context()))


def no_context() -> pl.DataFrame:
    """Build a context table without rows: its encoding has the form of the features."""
    empty = np.zeros(0, dtype=np.int64)
    return context_frame(empty, empty, np.zeros(0, dtype=np.bool_))


def _frame_of_targets(dataset: PreparedDataset) -> pl.DataFrame:
    events = _sampled_targets(dataset)
    return _frame_at(dataset, events, ~np.isin(events, dataset.user_offsets))


def _sampled_targets(dataset: PreparedDataset) -> Ints:
    """Return the training targets, or ``SAMPLE`` random ones, ascending."""
    chunks = list(row_chunks(len(dataset.roles)))
    counts = [int((dataset.roles[rows] == Role.TRAIN).sum()) for rows in chunks]
    if sum(counts) <= SAMPLE:
        return dataset.events_of(Role.TRAIN)
    ranks = np.sort(np.random.default_rng(0).choice(sum(counts), SAMPLE, replace=False))
    bounds = np.searchsorted(ranks, np.concatenate([[0], np.cumsum(counts)]))
    before, parts = 0, []
    for number, rows in enumerate(chunks):
        targets = np.flatnonzero(dataset.roles[rows] == Role.TRAIN) + rows.start
        parts.append(targets[ranks[bounds[number] : bounds[number + 1]] - before])
        before += counts[number]
    return np.concatenate(parts)


def _frame_at(
    dataset: PreparedDataset, events: Ints, has_last: npt.NDArray[np.bool_]
) -> pl.DataFrame:
    times, before = _timestamps(dataset), np.maximum(events - 1, 0)
    return context_frame(
        times[events],
        times[before],
        has_last,
        event_type_column(dataset, events, np.ones_like(has_last)),
        event_type_column(dataset, before, has_last),
    )


def event_type_column(
    dataset: PreparedDataset, events: Ints, is_known: npt.NDArray[np.bool_]
) -> pl.Series | None:
    """Return the event type names of interactions as a column of the context table.

    Args:
        dataset: the prepared dataset.
        events: [B] int64, indices of interactions.
        is_known: [B] bool; the name is null where False.

    Returns:
        [B] text; None for a dataset without event types.
    """
    if dataset.event_types is None:
        return None
    codes = pl.Series(dataset.event_types[events].astype(np.uint32))
    names = pl.Series(dataset.event_type_names, dtype=pl.String)
    return names.gather(codes.set(pl.Series(~is_known), None))


def _timestamps(dataset: PreparedDataset) -> Ints:
    if dataset.timestamps is None:
        raise ConfigError(
            "features.context needs the time of interactions; name its column with data.time"
        )
    return dataset.timestamps
