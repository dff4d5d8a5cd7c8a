"""Popularity: the same list for everyone, by the number of training targets."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from candid.baselines.baseline import Baseline
from candid.baselines.training_rows import Floats, TrainingRows
from candid.batches import Queries
from candid.component import ComponentConfig


class Popularity(Baseline):
    """Items by how often they are a training target.

    Args:
        config: settings.
        target_counts: [V] float64.
    """

    class Config(ComponentConfig):
        """Popularity has no settings."""

    reads_history = False

    def __init__(self, config: Any, target_counts: Floats) -> None:
        super().__init__(config, target_counts)
        self._row = torch.from_numpy(self._fallback)

    @classmethod
    def fit(cls, rows: TrainingRows, config: Any) -> Self:
        """Count the targets."""
        return cls(config, rows.target_counts)

    def score_catalog(self, queries: Queries) -> Tensor:
        """Return one row for all queries: [B, V], an expanded view."""
        return self._row.expand(len(queries), -1)
