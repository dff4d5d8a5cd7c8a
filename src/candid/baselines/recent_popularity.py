"""Recent popularity: the same list for everyone, by the latest training targets."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from candid.baselines.baseline import Baseline, Grid, below_zero
from candid.baselines.training_rows import Floats, TrainingRows
from candid.batches import Ints, Queries
from candid.component import ComponentConfig


class RecentPopularity(Baseline):
    """Items by how often they are among the latest training targets.

    Items that are not among them follow by popularity.

    Args:
        config: settings.
        target_counts: [V] float64.
        recent_counts: [V] float64, the counts of the latest targets.
    """

    class Config(ComponentConfig):
        """Settings of recent popularity."""

        share: float = Field(
            0.1,
            gt=0,
            le=1,
            description="share of the training targets that count: the latest by time; without "
            "times the last ones of each user",
        )

    grid: ClassVar[Grid] = {"share": (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)}
    state = ("target_counts", "recent_counts")
    reads_history = False

    def __init__(self, config: Any, target_counts: Floats, recent_counts: Floats) -> None:
        super().__init__(config, target_counts)
        self.recent_counts = recent_counts
        # Lexicographic: the fraction of the popularity is below one interaction.
        order = recent_counts + (below_zero(target_counts) + 1).astype(np.float64)
        self._row = torch.from_numpy(below_zero(order))

    @classmethod
    def fit(cls, rows: TrainingRows, config: Any) -> Self:
        """Count the latest targets; those at the time of the cut count as well."""
        items, users = rows.item_ids[rows.is_target], rows.user_ids[rows.is_target]
        num_recent = max(1, round(config.share * len(items)))
        if rows.times is not None:
            times = rows.times[rows.is_target]
            is_recent = times >= np.partition(times, -num_recent)[-num_recent]
        else:
            is_recent = _from_end(users) <= np.ceil(config.share * np.bincount(users)[users])
        recent = np.bincount(items[is_recent], minlength=rows.num_items).astype(np.float64)
        return cls(config, rows.target_counts, recent)

    def score_catalog(self, queries: Queries) -> Tensor:
        """Return one row for all queries: [B, V], an expanded view."""
        return self._row.expand(len(queries), -1)


def _from_end(users: Ints) -> Ints:
    """Return the place of each row from the end of its user's rows, 1 for the last one."""
    stops = np.cumsum(np.bincount(users))
    places: Ints = stops[users] - np.arange(len(users))
    return places
