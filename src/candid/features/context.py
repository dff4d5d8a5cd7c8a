"""The context of a question: when it is asked, and how long after what came before.

Training asks at the moment of the interaction that answers; evaluation at that of the first
held-out one; service now. The context is a table like that of items, with the
columns ``time`` (a moment, UTC), ``since`` (seconds since the user's last interaction, null
where there is none), and where interactions have kinds ``event_type`` (what the answer will be, a
view or a purchase) and ``last_event_type``, which features of any type may read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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

    def at(
        self, events: Ints, knows_history: npt.NDArray[np.bool_] | None = None
    ) -> dict[str, Values]:
        """The context of asking for interactions [B] of the dataset at their moment.

        Args:
            events: the interactions.
            knows_history: [B], False where it is asked as of somebody without a history; None:
                nowhere.
        """
        has_last = ~self._is_first[events]
        if knows_history is not None:
            has_last &= knows_history
        return self.table.encode(_frame_at(self.dataset, events, has_last))


def context_frame(
    times: Ints,
    last: Ints,
    has_last: npt.NDArray[np.bool_],
    event_types: pl.Series | None = None,
    last_event_types: pl.Series | None = None,
) -> pl.DataFrame:
    """The table that context features read.

    Args:
        times: [B] microseconds since 1970-01-01 UTC, when each question is asked.
        last: [B], when the user's last interaction was; anything where there is none.
        has_last: [B].
        event_types: [B] text, the kind that is asked for; None: not known.
        last_event_types: [B] text, the kind of the last interaction; None: not known.
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
    """Learn context features from the moments of the interactions that are trained on.

    Raises:
        ConfigError: the dataset has no times, or a feature names another column.
        DataError: a column's values cannot be of the feature's type.
    """
    frame = _trained(dataset)
    fitted = fit_table(configs, frame, np.ones(frame.height, dtype=np.bool_), "features.context")
    return replace(fitted, values=fitted.encode(no_context()))


def no_context() -> pl.DataFrame:
    """The context table of no question: what a fitted feature makes of it has its form."""
    nothing = np.zeros(0, dtype=np.int64)
    return context_frame(nothing, nothing, np.zeros(0, dtype=np.bool_))


def _trained(dataset: PreparedDataset) -> pl.DataFrame:
    events = np.flatnonzero(dataset.roles == Role.TRAIN)
    if len(events) > SAMPLE:
        events = np.sort(np.random.default_rng(0).choice(events, SAMPLE, replace=False))
    return _frame_at(dataset, events, ~np.isin(events, dataset.user_offsets))


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
            "features.context needs to know when interactions were: name their time with data.time"
        )
    return dataset.timestamps
