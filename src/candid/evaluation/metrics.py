"""Ranking metrics as pure functions of where the hits are.

Each takes ``hits`` [Q, K] (True where the item at that rank is relevant, best rank first),
``num_relevant`` [Q] (how many relevant items the query has in all, at least 1) and the
cut-offs ``ks``, and returns float64 [Q, len(ks)]. Relevance is binary.

Definitions follow Järvelin & Kekäläinen (2002) for NDCG, with gain 1 and discount
1 / log2(rank + 1), and trec_eval for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
RankingMetric = Callable[[Bools, Ints, Sequence[int]], Floats]


def recall(hits: Bools, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Share of a query's relevant items among its first k."""
    return _found(hits, ks) / num_relevant[:, None]


def hit_rate(hits: Bools, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """1 where any of the first k is relevant, else 0."""
    return (_found(hits, ks) > 0).astype(np.float64)


def ndcg(hits: Bools, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Discounted gain of the first k over the largest possible, Σ over min(k, relevant) ranks."""
    discount = 1 / np.log2(np.arange(hits.shape[1]) + 2)
    gained = np.cumsum(hits * discount, axis=1)[:, _columns(ks)]
    ideal = np.cumsum(discount)[np.minimum(num_relevant[:, None], np.asarray(ks)) - 1]
    result: Floats = gained / ideal
    return result


def mrr(hits: Bools, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """1 / rank of the first relevant item, 0 where it is not among the first k."""
    rank = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, np.iinfo(np.int64).max)[:, None]
    return np.where(rank <= np.asarray(ks), 1 / rank, 0.0)


RANKING_METRICS: Mapping[str, RankingMetric] = {
    "recall": recall,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
}
"""Name before the ``@`` → function. Larger is better for each."""


def list_mean(values: Floats, item_ids: Ints, ks: Sequence[int]) -> Floats:
    """Mean over the first k recommended items of a value that each item has.

    Args:
        values: [V], such as the training count of each item.
        item_ids: [Q, K] recommended items, -1 after the end of a list.
        ks: cut-offs.

    Returns:
        [Q, len(ks)]; 0 for an empty list.
    """
    present = item_ids >= 0
    total = np.cumsum(np.where(present, values[item_ids], 0.0), axis=1)
    length = np.maximum(np.cumsum(present, axis=1), 1)
    result: Floats = (total / length)[:, _columns(ks)]
    return result


def popularity_percentile(counts: Ints) -> Floats:
    """Where each item stands in the catalog by training count, as a share in (0, 1).

    Args:
        counts: [V] training counts.

    Returns:
        [V], the share of items that are less popular, equals counted half: the mean over the
        catalog is exactly 1/2, whatever the ties.
    """
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, counts, side="left")
    up_to = np.searchsorted(ordered, counts, side="right")
    return (below + up_to) / (2 * len(counts))


def _found(hits: Bools, ks: Sequence[int]) -> Ints:
    found: Ints = np.cumsum(hits, axis=1, dtype=np.int64)[:, _columns(ks)]
    return found


def _columns(ks: Sequence[int]) -> Ints:
    return np.asarray(ks, dtype=np.int64) - 1
