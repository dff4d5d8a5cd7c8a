"""Ranking metrics as pure functions of the ranks of relevant items.

Each takes ``is_relevant`` [Q, K] (True where the item at that rank is relevant, best rank first),
``num_relevant`` [Q] (number of relevant items of the query, in the list or not, at least 1) and
the cut-offs ``ks``, and returns float64 [Q, len(ks)]. Relevance is binary.

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


def recall(is_relevant: Bools, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Compute the share of the relevant items of a query that are in the first k ranks."""
    return _num_in_top(is_relevant, ks) / num_relevant[:, None]


def hit_rate(is_relevant: Bools, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Return 1 where any of the first k items is relevant, else 0."""
    return (_num_in_top(is_relevant, ks) > 0).astype(np.float64)


def ndcg(is_relevant: Bools, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Divide the discounted gain of the first k ranks by the largest possible.

    The largest possible gain is that of min(k, num_relevant) relevant items at the first ranks.
    """
    discount = 1 / np.log2(np.arange(is_relevant.shape[1]) + 2)
    gained = np.cumsum(is_relevant * discount, axis=1)[:, _columns(ks)]
    ideal = np.cumsum(discount)[np.minimum(num_relevant[:, None], np.asarray(ks)) - 1]
    result: Floats = gained / ideal
    return result


def mrr(is_relevant: Bools, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Return 1 / rank of the first relevant item, 0 where it is not in the first k ranks."""
    first = is_relevant.argmax(axis=1) + 1
    rank = np.where(is_relevant.any(axis=1), first, np.iinfo(np.int64).max)[:, None]
    return np.where(rank <= np.asarray(ks), 1 / rank, 0.0)


RANKING_METRICS: Mapping[str, RankingMetric] = {
    "recall": recall,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
}
"""Metric functions by the name before the ``@``. Larger values are better."""


def list_mean(values: Floats, item_ids: Ints, ks: Sequence[int]) -> Floats:
    """Average a value of items over the first k recommended items.

    Args:
        values: [V] float64, such as the training count of each item.
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
    """Compute the percentile of each item in the catalog by training count, a share in (0, 1).

    Args:
        counts: [V] training counts.

    Returns:
        [V] float64, the share of less popular items plus half the share of equally popular
        ones. The mean over the catalog is exactly 1/2, with any ties.
    """
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, counts, side="left")
    up_to = np.searchsorted(ordered, counts, side="right")
    return (below + up_to) / (2 * len(counts))


def _num_in_top(is_relevant: Bools, ks: Sequence[int]) -> Ints:
    """Count the relevant items in the first k ranks: [Q, len(ks)]."""
    counts: Ints = np.cumsum(is_relevant, axis=1, dtype=np.int64)[:, _columns(ks)]
    return counts


def _columns(ks: Sequence[int]) -> Ints:
    return np.asarray(ks, dtype=np.int64) - 1
