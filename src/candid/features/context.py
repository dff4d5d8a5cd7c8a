"""The context of a question: when it is asked, and how long after what came before.

Training asks at the moment of the interaction that answers; evaluation at that of the first
held-out one; service now. The context is a table like that of items, with two columns,
``time`` (a moment, UTC) and ``since`` (seconds since the user's last interaction, null where
there is none), which features of any type may read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import PreparedDataset, Role
from candid.errors import ConfigError
from candid.features.protocol import FeatureConfig
from candid.features.table import FeatureTable, fit_table
from candid.features.values import Values

Ints = npt.NDArray[np.int64]

SAMPLE = 1_000_000
"""Interactions that scales and vocabularies are learnt from, at most; drawn at random."""


@dataclass(frozen=True)
class Context:
    """Encodes the context of questions about one dataset.

    Attributes:
        dataset: with timestamps.
        table: fitted features; its values are those of no rows, only their form matters.
    """

    dataset: PreparedDataset
    table: FeatureTable

    @cached_property
    def _is_first(self) -> npt.NDArray[np.bool_]:
        is_first = np.zeros(len(self.dataset.item_ids) + 1, dtype=np.bool_)
        is_first[self.dataset.user_offsets] = True
        return is_first

    def at(self, events: Ints) -> dict[str, Values]:
        """The context of asking for interactions [B] of the dataset at their moment."""
        times = _timestamps(self.dataset)
        last = times[np.maximum(events - 1, 0)]
        return self.table.encode(context_frame(times[events], last, ~self._is_first[events]))

    def asked(
        self, time: int, starts: Ints | None, stops: Ints | None, num_queries: int
    ) -> dict[str, Values]:
        """The context of questions asked at one moment.

        Args:
            time: microseconds since 1970-01-01 UTC.
            starts: [B], where in the dataset's interactions the history of each begins; None:
                histories of unknown times.
            stops: [B], where it ends.
            num_queries: B.
        """
        times = np.full(num_queries, time)
        if starts is None or stops is None:
            return self.table.encode(context_frame(times, times, np.zeros(num_queries, np.bool_)))
        last = _timestamps(self.dataset)[np.maximum(stops - 1, 0)]
        return self.table.encode(context_frame(times, last, stops > starts))


def context_frame(times: Ints, last: Ints, has_last: npt.NDArray[np.bool_]) -> pl.DataFrame:
    """The table that context features read.

    Args:
        times: [B] microseconds since 1970-01-01 UTC, when each question is asked.
        last: [B], when the user's last interaction was; anything where there is none.
        has_last: [B].
    """
    since = (times - last) / 1e6
    return pl.DataFrame(
        {
            "time": pl.Series(times, dtype=pl.Int64).cast(pl.Datetime("us")),
            "since": pl.Series(np.where(has_last & (since >= 0), since, np.nan)).fill_nan(None),
        }
    )


def fit_context(configs: Mapping[str, FeatureConfig], dataset: PreparedDataset) -> FeatureTable:
    """Learn context features from the moments of the interactions that are trained on.

    Raises:
        ConfigError: the dataset has no times, or a feature names another column.
        DataError: a column's values cannot be of the feature's type.
    """
    frame = _trained(dataset)
    fitted = fit_table(configs, frame, np.ones(frame.height, dtype=np.bool_), "features.context")
    return FeatureTable(fitted.features, fitted.columns, fitted.encode(no_context()))


def no_context() -> pl.DataFrame:
    """The context table of no question: what a fitted feature makes of it has its form."""
    nothing = np.zeros(0, dtype=np.int64)
    return context_frame(nothing, nothing, np.zeros(0, dtype=np.bool_))


def _trained(dataset: PreparedDataset) -> pl.DataFrame:
    events = np.flatnonzero(dataset.roles == Role.TRAIN)
    if len(events) > SAMPLE:
        events = np.sort(np.random.default_rng(0).choice(events, SAMPLE, replace=False))
    times = _timestamps(dataset)
    starts = np.isin(events, dataset.user_offsets)
    return context_frame(times[events], times[np.maximum(events - 1, 0)], ~starts)


def _timestamps(dataset: PreparedDataset) -> Ints:
    if dataset.timestamps is None:
        raise ConfigError(
            "features.context needs to know when interactions were: name their time with data.time"
        )
    return dataset.timestamps
