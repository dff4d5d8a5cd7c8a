"""The base of baselines that add up the neighbours of the items in a history."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from scipy import sparse
from torch import Tensor

from candid.baselines.baseline import Baseline, history_matrix
from candid.baselines.training_rows import Floats
from candid.batches import Queries
from candid.component import ComponentConfig


class NeighboursConfig(ComponentConfig):
    """Settings that all baselines of neighbours share."""

    decay: float = Field(
        0.8, gt=0, le=1, description="weight of a history item relative to the one after it"
    )


class Neighbours(Baseline):
    """Scores are Σ_a decay^a · S[h_a], over the items h_a of age a in the history.

    Args:
        config: settings.
        target_counts: [V] float64.
        similarities: S, [V, V] float32: row i has the scores of all items after item i.
    """

    query_settings = frozenset({"decay"})
    state = ("target_counts", "similarities")

    def __init__(self, config: Any, target_counts: Floats, similarities: sparse.csr_array) -> None:
        super().__init__(config, target_counts)
        self.similarities = similarities

    def score_catalog(self, queries: Queries) -> Tensor:
        """Score all items; those without a neighbour in the history follow by popularity."""
        weights = history_matrix(queries, self.similarities.shape[0], decay=self.config.decay)
        scores = (weights @ self.similarities).toarray()
        return self.with_popularity_below(scores)
