"""Session kNN: items of the training users whose rows resemble the history."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field
from scipy import sparse
from torch import Tensor

from candid.baselines.baseline import Baseline, Grid, history_matrix
from candid.baselines.sparse_products import blocks_of_rows, largest_in_rows, product_costs
from candid.baselines.training_rows import Floats, TrainingRows
from candid.batches import Ints, Queries
from candid.component import ComponentConfig


class SessionKNN(Baseline):
    """Items of the nearest sessions; a session is the training rows of one user.

    The similarity of a session s is Σ decay^a over the distinct items of the history that s has,
    a the age of the item's last occurrence. The score of an item is the sum of the similarities of
    the nearest sessions that have it as a target, divided by n_j^popularity_discount. V-SKNN of
    Ludewig & Jannach, "Evaluation of session-based recommendation algorithms" (UMUAI 2018), with
    geometric instead of linear weights; candidates are the latest sessions of each item, as in
    VMIS-kNN (Kersbergen et al., SIGMOD 2022). The user's own training rows are not a neighbour.

    Args:
        config: settings.
        target_counts: [V] float64.
        sessions_of_item: [V, S] float32 of ones: the latest sessions of each item.
        targets_of_session: [S, V] float32, n_j^-popularity_discount of each target.
        owners: [S] int64, the user of each session.
    """

    class Config(ComponentConfig):
        """Settings of session kNN."""

        neighbours: int = Field(200, ge=1, description="sessions whose items are scored")
        sessions_per_item: int = Field(
            1000, ge=1, description="latest sessions of each item that are candidates"
        )
        decay: float = Field(
            0.8, gt=0, le=1, description="weight of a history item relative to the one after it"
        )
        popularity_discount: float = Field(
            0.0, ge=0, le=1, description="exponent of the item's count that divides the score"
        )

    grid: ClassVar[Grid] = {
        "decay": (0.4, 0.6, 0.8, 0.9, 0.95),
        "neighbours": (50, 200, 1000),
        "popularity_discount": (0.0, 0.25, 0.5),
        "sessions_per_item": (300, 1000),
    }
    query_settings = frozenset({"decay", "neighbours"})
    state = ("target_counts", "sessions_of_item", "targets_of_session", "owners")

    def __init__(
        self,
        config: Any,
        target_counts: Floats,
        sessions_of_item: sparse.csr_array,
        targets_of_session: sparse.csr_array,
        owners: Ints,
    ) -> None:
        super().__init__(config, target_counts)
        self.sessions_of_item = sessions_of_item
        self.targets_of_session = targets_of_session
        self.owners = owners

    @classmethod
    def fit(cls, rows: TrainingRows, config: Any) -> Self:
        """Number the sessions by falling time of their last row and store the latest of each item.

        Without times they are numbered by falling user id.
        """
        is_last = np.append(rows.user_ids[1:] != rows.user_ids[:-1], True)
        users = rows.user_ids[is_last]
        ends = users if rows.times is None else rows.times[is_last]
        owners = users[np.argsort(-ends, kind="stable")]
        by_item = sparse.csr_array(rows.matrix()[owners].T)
        # Session numbers fall with time, and the entries of an item are equal: the latest stay.
        sessions_of_item = largest_in_rows(by_item, config.sessions_per_item)
        targets = rows.matrix(targets_only=True)[owners]
        targets.data /= rows.target_counts[targets.indices] ** config.popularity_discount
        return cls(config, rows.target_counts, sessions_of_item, targets, owners)

    def score_catalog(self, queries: Queries) -> Tensor:
        """Score all items; those in no near session follow by popularity."""
        num_items = self.sessions_of_item.shape[0]
        history = history_matrix(queries, num_items, decay=self.config.decay, distinct=True)
        scores = np.zeros((len(queries), num_items), dtype=np.float32)
        user_ids = queries.user_ids.numpy()
        for block in blocks_of_rows(product_costs(history, self.sessions_of_item)):
            similarity = history[block] @ self.sessions_of_item
            rows = np.repeat(user_ids[block], np.diff(similarity.indptr))
            similarity.data[self.owners[similarity.indices] == rows] = 0
            similarity.eliminate_zeros()
            nearest = largest_in_rows(similarity, self.config.neighbours)
            scores[block] = (nearest @ self.targets_of_session).toarray()
        return self.with_popularity_below(scores)
