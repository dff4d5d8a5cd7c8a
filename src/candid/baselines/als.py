"""ALS: a factorisation of the interactions with confidences, fitted by the package implicit."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor

from candid.baselines.baseline import Baseline, Grid, Scores, history_matrix
from candid.baselines.sparse_products import blocks_of_rows
from candid.baselines.training_rows import Floats, TrainingRows
from candid.batches import Queries
from candid.component import ComponentConfig
from candid.errors import ConfigError
from candid.towers import EncodeProgress

MAX_GATHERED = 2**22
"""Entries of the factors and matrices of one block of queries: about 16 MiB each."""


class ALS(Baseline):
    """Scores x·y_j with x the factors of the history, y_j those of the item.

    Minimises Σ_uj c_uj (p_uj - x_u·y_j)² + l2 (Σ‖x_u‖² + Σ‖y_j‖²) with p = 1 and c = confidence
    for items of the user, p = 0 and c = 1 for all others: Hu, Koren & Volinsky, "Collaborative
    filtering for implicit feedback datasets" (ICDM 2008). The factors of a query are solved from
    its history with the item factors fixed, so users without training rows have some too.

    Args:
        config: settings.
        target_counts: [V] float64.
        item_factors: y, [V, D] float32.
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
    state = ("target_counts", "item_factors")

    def __init__(self, config: Any, target_counts: Floats, item_factors: Scores) -> None:
        super().__init__(config, target_counts)
        self.item_factors = item_factors
        self._items = items = torch.from_numpy(item_factors)
        self._gram = items.T @ items + config.l2 * torch.eye(items.shape[1])

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
        return cls(config, rows.target_counts, np.asarray(model.item_factors, dtype=np.float32))

    def score_catalog(self, queries: Queries) -> Tensor:
        """Score all items; a query without a history has the order of popularity."""
        history = history_matrix(queries, len(self.item_factors), distinct=True)
        scores = self._factors_of(history) @ self._items.T
        is_empty = torch.from_numpy(np.diff(history.indptr) == 0)
        scores[is_empty] = torch.from_numpy(self._fallback)
        return scores

    @property
    def vector_model(self) -> Self:
        """The baseline itself: its query and item vectors are the factors."""
        return self

    def encode_queries(self, queries: Queries) -> Tensor:
        """Return the factors of B queries: [B, D] float32, zeros without a history."""
        return self._factors_of(history_matrix(queries, len(self.item_factors), distinct=True))

    def encode_catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Return the factors of all items: [V, D] float32."""
        return self._items

    def _factors_of(self, history: sparse.csr_array) -> Tensor:
        """Solve (YᵀY + l2·I + (c - 1) HᵀH) x = c Hᵀ1, H the factors of the items of one query.

        Args:
            history: [B, V], its stored entries are the items of each query.
        """
        lengths = np.diff(history.indptr)
        factors = torch.zeros(len(lengths), self._items.shape[1])
        # Queries of similar length share a block, padded to the longest one, which is the last.
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        extra = self.config.confidence - 1
        dim = factors.shape[1]
        for block in blocks_of_rows((lengths[order] + dim) * dim, MAX_GATHERED):
            queries = order[block]
            columns = np.arange(lengths[queries[-1]])
            is_item = columns < lengths[queries, None]
            entries = np.where(is_item, history.indptr[queries, None] + columns, 0)
            items = self._items[torch.from_numpy(history.indices[entries].astype(np.int64))]
            items *= torch.from_numpy(is_item)[:, :, None]
            matrix = self._gram + extra * (items.mT @ items)
            right = (extra + 1) * items.sum(dim=1)[:, :, None]
            solved = torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
            factors[torch.from_numpy(queries)] = solved[:, :, 0]
        return factors


def _as_matrix(array: sparse.csr_array) -> Any:
    """Return the matrix type that implicit reads, with 32-bit indices."""
    matrix = sparse.csr_matrix(array)
    matrix.indices, matrix.indptr = matrix.indices.astype("i4"), matrix.indptr.astype("i4")
    return matrix
