"""ALS: a factorisation of the interactions with confidences, by the package implicit."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor

from candid.baselines.baseline import Baseline, Grid, history_matrix
from candid.baselines.training_rows import Floats, TrainingRows
from candid.batches import Queries
from candid.component import ComponentConfig
from candid.errors import ConfigError


class ALS(Baseline):
    """Scores x·y_j with x the factors of the history, y_j those of the item.

    Minimises Σ_uj c_uj (p_uj - x_u·y_j)² + l2 (Σ‖x_u‖² + Σ‖y_j‖²) with p = 1 and c = confidence
    for items of the user, p = 0 and c = 1 for all others: Hu, Koren & Volinsky, "Collaborative
    filtering for implicit feedback datasets" (ICDM 2008). The factors of a query are solved from
    its history with the item factors fixed, so users without training rows have some too.

    Args:
        config: settings.
        target_counts: [V] float64.
        model: the fitted model of implicit.
    """

    class Config(ComponentConfig):
        """Settings of ALS."""

        factors: int = Field(64, ge=1, description="width of the factors")
        confidence: float = Field(
            5.0, gt=1, description="weight of an item that the user has; all others have 1"
        )
        l2: float = Field(1.0, gt=0, description="weight of the squared norms")
        iterations: int = Field(15, ge=1, description="passes over users and items")
        seed: int = Field(0, ge=0, lt=2**32, description="seed of the initial factors")

    grid: ClassVar[Grid] = {
        "confidence": (2.0, 5.0, 20.0),
        "l2": (0.1, 1.0, 10.0),
        "factors": (32, 64, 128),
    }

    def __init__(self, config: Any, target_counts: Floats, model: Any) -> None:
        super().__init__(config, target_counts)
        self._model = model

    @classmethod
    def fit(cls, rows: TrainingRows, config: Any) -> Self:
        """Fit the factors on the threads of torch.

        Raises:
            ConfigError: implicit is not installed.
        """
        try:
            from implicit.cpu.als import AlternatingLeastSquares
            from threadpoolctl import threadpool_limits
        except ImportError:
            raise ConfigError(
                "the baseline 'als' needs implicit: pip install 'candid-retrieval[als]'"
            ) from None
        # implicit runs its own threads and warns of a BLAS that has some as well.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=config.factors,
                alpha=config.confidence,
                regularization=config.l2,
                iterations=config.iterations,
                random_state=config.seed,
                num_threads=torch.get_num_threads(),
            )
            model.fit(_as_matrix(rows.matrix()), show_progress=False)
        return cls(config, rows.target_counts, model)

    def score_catalog(self, queries: Queries) -> Tensor:
        """Score all items; a query without a history has the order of popularity."""
        items = np.asarray(self._model.item_factors, dtype=np.float32)
        history = history_matrix(queries, len(items), distinct=True)
        users = self._model.recalculate_user(np.arange(len(queries)), _as_matrix(history))
        scores = np.asarray(users, dtype=np.float32) @ items.T
        scores[np.diff(history.indptr) == 0] = self._fallback
        return torch.from_numpy(scores)


def _as_matrix(array: sparse.csr_array) -> Any:
    """Return the matrix type that implicit reads, with 32-bit indices."""
    matrix = sparse.csr_matrix(array)
    matrix.indices, matrix.indptr = matrix.indices.astype("i4"), matrix.indptr.astype("i4")
    return matrix
