"""EASE: a linear model of all items in closed form."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from candid.baselines.baseline import Baseline, Grid, Scores, history_matrix
from candid.baselines.training_rows import Floats, TrainingRows
from candid.batches import Queries
from candid.component import ComponentConfig
from candid.errors import ConfigError


class EASE(Baseline):
    """Scores x·B with B = argmin ‖X - X·B‖² + λ‖B‖² and a diagonal of 0, X the items of each user.

    B[i, j] = -P[i, j] / P[j, j] with P = (XᵀX + λI)⁻¹. Steck, "Embarrassingly shallow
    autoencoders for sparse data" (WWW 2019), equation 8. The decay of the history is an addition.

    Args:
        config: settings.
        target_counts: [V] float64.
        weights: B, [V, V] float32.
    """

    class Config(ComponentConfig):
        """Settings of EASE."""

        l2: float = Field(500.0, gt=0, description="λ, the weight of the squared norm")
        decay: float = Field(
            1.0, gt=0, le=1, description="weight of a history item relative to the one after it"
        )
        max_items: int = Field(
            10_000,
            ge=1,
            description="largest catalog: time grows with its cube, memory is 24 bytes times its "
            "square",
        )

    grid: ClassVar[Grid] = {"decay": (1.0, 0.95, 0.9, 0.8, 0.6), "l2": (20.0, 100.0, 500.0, 2500.0)}
    query_settings = frozenset({"decay"})
    state = ("target_counts", "weights")

    def __init__(self, config: Any, target_counts: Floats, weights: Scores) -> None:
        super().__init__(config, target_counts)
        self.weights = weights

    @classmethod
    def fit(cls, rows: TrainingRows, config: Any) -> Self:
        """Invert the Gram matrix in float64 by its Cholesky factor.

        Raises:
            ConfigError: the catalog is larger than ``max_items``.
        """
        if rows.num_items > config.max_items:
            raise ConfigError(
                f"ease needs a dense matrix of {rows.num_items:,} × {rows.num_items:,} items, more "
                f"than max_items = {config.max_items:,}: prepare the data without rare items"
            )
        items = rows.matrix()
        gram = torch.from_numpy((items.T @ items).toarray().astype(np.float64))
        gram.diagonal().add_(config.l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        weights = inverse.div_(-inverse.diagonal().clone())
        weights.diagonal().zero_()
        return cls(config, rows.target_counts, weights.float().numpy())

    def score_catalog(self, queries: Queries) -> Tensor:
        """Score all items; a query without a history has the order of popularity."""
        history = history_matrix(queries, len(self.weights), decay=self.config.decay, distinct=True)
        scores = np.asarray(history @ self.weights, dtype=np.float32)
        scores[np.diff(history.indptr) == 0] = self._fallback
        return torch.from_numpy(scores)
