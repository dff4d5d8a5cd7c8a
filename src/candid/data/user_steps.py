"""Steps of a preparation that need only the rows of one user, over parts of whole users."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import filters, negatives
from candid.data.config import DataConfig
from candid.data.event_types import is_target
from candid.data.parts import sort_rows

UNASSIGNED = 255
"""Role code of a row without a role."""

Mask = npt.NDArray[np.bool_]


def keep_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the column ``place``: the number of each row now, before a sort by role."""
    return frame.with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias("place"))


class UserSteps:
    """The steps that need only the rows of one user: negatives, roles and repeated interactions.

    Args:
        config: settings.
        event_types: names of the event types, by code.
        items: source id of each item.
        num_types: number of event types that are interactions, before those of impressions; None:
            there are no impressions.

    Attributes:
        num_rows: rows before these steps.
        dropped: reason -> number of rows, in the order of the steps.
    """

    def __init__(
        self,
        config: DataConfig,
        event_types: tuple[str, ...],
        items: pl.Series,
        num_types: int | None,
    ) -> None:
        self._event_types, self._config = event_types, config
        columns = config.columns
        self._order = [pl.col(key) for key in ("time", "order") if key in columns]
        self._has_role = "role" in columns
        self._num_types = num_types
        self._negatives = (
            None if config.negatives is None else negatives.NegativeEncoder(items, config.negatives)
        )
        self._left_out: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self.num_rows = 0

    def __call__(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the rows to keep of whole users, in order of use."""
        config = self._config
        self.num_rows += frame.height
        if self._negatives is not None:
            frame = self._negatives.encode(frame)
        if self._num_types is not None:
            frame = self._attach_impressions(frame, self._num_types)
        if self._has_role:
            # After the impressions were removed: those have no role.
            frame = sort_rows(keep_order(frame), [pl.col("role"), *self._order])
        if config.split.drop_unassigned and self._has_role:
            frame = self._filter(frame, "unassigned", frame["role"].to_numpy() != UNASSIGNED)
        if config.deduplicate != "none":
            mask = filters.without_repetitions(
                frame["user"].to_numpy(),
                frame["item"].to_numpy(),
                frame["event_type"].to_numpy() if self._event_types else None,
                config.deduplicate,
            )
            frame = self._filter(frame, "repeated", mask)
        return frame

    def negatives_left_out(self) -> dict[str, int]:
        """Return reason -> number of negatives that were left out, after all rows.

        Raises:
            DataError: there are negatives, but none is an item.
        """
        unknown = 0 if self._negatives is None else self._negatives.count_unknown()
        left_out = {"of_no_interaction": unknown, **self._left_out}
        return {reason: count for reason, count in left_out.items() if count}

    def _attach_impressions(self, frame: pl.DataFrame, num_types: int) -> pl.DataFrame:
        """Turn impressions into negatives; the interactions stay."""
        codes = frame["event_type"].to_numpy()
        is_impression = codes >= num_types
        targets = ~is_impression & is_target(codes, self._event_types, self._config)
        frame, left_out = negatives.attach_impressions(frame, is_impression, targets)
        for reason, count in left_out.items():
            self._left_out[reason] = self._left_out.get(reason, 0) + count
        return self._filter(frame, "shown", ~is_impression)

    def _filter(self, frame: pl.DataFrame, reason: str, is_kept: Mask) -> pl.DataFrame:
        dropped = len(is_kept) - int(is_kept.sum())
        self.dropped[reason] = self.dropped.get(reason, 0) + dropped
        return frame.filter(pl.Series(is_kept, dtype=pl.Boolean)) if dropped else frame
