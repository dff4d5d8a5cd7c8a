"""Item kNN: items that the same users have, by cosine."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field
from scipy import sparse

from candid.baselines.baseline import Grid
from candid.baselines.neighbours import Neighbours, NeighboursConfig
from candid.baselines.sparse_products import blocks_of_rows, largest_in_rows, product_costs
from candid.baselines.training_rows import TrainingRows


class ItemKNN(Neighbours):
    """Items whose users are those of the history's items.

    S[i, j] = c_ij / (sqrt(n_i · n_j) + shrinkage) with c_ij the number of users who have both,
    n_i the number of users of item i; the diagonal is 0, and the largest entries of each row
    stay. Sarwar et al., "Item-based collaborative filtering recommendation algorithms" (WWW
    2001); the shrinkage is that of Dacrema et al. (RecSys 2019). Item j counts training targets
    only, item i all training rows.
    """

    class Config(NeighboursConfig):
        """Settings of item kNN."""

        shrinkage: float = Field(
            20.0, ge=0, description="added to the denominator: large values favour frequent pairs"
        )
        neighbours: int = Field(200, ge=1, description="items that stay of each row")

    grid: ClassVar[Grid] = {
        "decay": (1.0, 0.95, 0.9, 0.8, 0.6),
        "shrinkage": (0.0, 5.0, 20.0, 100.0),
        "neighbours": (50, 200, 1000),
    }

    @classmethod
    def fit(cls, rows: TrainingRows, config: Any) -> Self:
        """Multiply in blocks of items, of which only the largest entries are kept."""
        sources, targets = rows.matrix(), rows.matrix(targets_only=True)
        by_item = sparse.csr_array(sources.T)
        num_source = np.sqrt(np.diff(by_item.indptr))
        num_target = np.sqrt(np.bincount(targets.indices, minlength=rows.num_items))
        parts = []
        for block in blocks_of_rows(product_costs(by_item, targets)):
            counts = by_item[block] @ targets
            lengths = np.diff(counts.indptr)
            items = np.repeat(np.arange(block.start, block.stop), lengths)
            norms = num_source[items] * num_target[counts.indices]
            values = counts.data / (norms + config.shrinkage)
            values[items == counts.indices] = 0
            counts.data = values.astype(np.float32)
            counts.eliminate_zeros()
            parts.append(largest_in_rows(counts, config.neighbours))
        return cls(config, rows.target_counts, sparse.vstack(parts, format="csr"))
