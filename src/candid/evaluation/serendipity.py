"""Serendipity: relevant recommended items that a list of popular items ranks lower.

The definition is that of RecTools: Σ_{i ≤ k} max(p_i - q_i, 0) · [item i is relevant] / k, where
p_i = (n + 1 - i)/n for rank i of n items that can be recommended, and q_i is the same for the
popularity rank of the item, 0 for an item that training does not have. So a relevant item at rank
i with popularity rank r contributes max(r - i, 0)/n. Items with the same count share a popularity
rank, and the next smaller count has the next rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from candid.batches import Ints
from candid.evaluation.metrics import Floats
from candid.evaluation.ties import RankedTargets


@dataclass(frozen=True)
class Serendipity:
    """The popularity ranks of the items that can be recommended.

    Attributes:
        popularity_ranks: [V] int64, from 1.
        num_items: n, the number of items that can be recommended.
    """

    popularity_ranks: Ints
    num_items: int

    @classmethod
    def of(cls, counts: Ints | Floats, num_items: int) -> Serendipity:
        """Rank the items by popularity.

        Args:
            counts: [V] training counts; items of count 0 have rank n + 1.
            num_items: n.
        """
        distinct, inverse = np.unique(counts, return_inverse=True)
        ranks = len(distinct) - inverse.astype(np.int64)
        return cls(np.where(counts > 0, ranks, num_items + 1), num_items)

    def sums(self, ranked: RankedTargets, rows: Ints, num_rows: int, ks: Sequence[int]) -> Floats:
        """Sum the expected contributions of relevant items over the orders of tied items.

        A target is at each rank of its tied group with the same probability, so its expectation
        is a sum of consecutive integers.

        Args:
            ranked: the relevant items that can be in the first K ranks.
            rows: [n] int64, the row of each, instead of ``ranked.rows``.
            num_rows: P.
            ks: cut-offs.

        Returns:
            [P, len(ks)]: serendipity@k of each row.
        """
        popularity = self.popularity_ranks[ranked.item_ids]
        first = ranked.starts + 1
        end = ranked.starts + ranked.sizes
        columns = []
        for k in ks:
            # Ranks from `first` to `last` of the group are in the first k and above `popularity`.
            last = np.minimum(np.minimum(end, k), popularity - 1)
            num_ranks = np.maximum(last - first + 1, 0)
            excess = num_ranks * (2 * popularity - first - last) / 2
            value = excess / (ranked.sizes * (self.num_items * k))
            columns.append(np.bincount(rows, weights=value, minlength=num_rows))
        result: Floats = np.stack(columns, axis=1)
        return result
