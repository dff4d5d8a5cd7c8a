"""Ranking metrics as pure functions of the probabilities of relevance at each rank.

Each takes ``ranks`` (probabilities [Q, K], best rank first), ``num_relevant`` [Q] (number of
relevant items of the query, in the list or not, at least 1) and the cut-offs ``ks``, and returns
float64 [Q, len(ks)]. Relevance is binary; probabilities other than 0 and 1 come from tied items,
and the value is then the expectation over their orders (``candid.evaluation.ties``).

Definitions follow Järvelin & Kekäläinen (2002) for NDCG, with gain 1 and discount
1 / log2(rank + 1), and trec_eval for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RankProbabilities:
    """Probabilities of relevance at the first K ranks of Q queries, over the orders of tied items.

    Attributes:
        relevant: [Q, K] float64, that the item at the rank is relevant.
        first: [Q, K] float64, that it is the first relevant item of the list.
    """

    relevant: Floats
    first: Floats


RankingMetric = Callable[[RankProbabilities, Ints, Sequence[int]], Floats]


def recall(ranks: RankProbabilities, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Compute the share of the relevant items of a query that are in the first k ranks."""
    result: Floats = np.cumsum(ranks.relevant, axis=1)[:, _columns(ks)] / num_relevant[:, None]
    return result


def hit_rate(ranks: RankProbabilities, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Compute the probability that any of the first k items is relevant; 0 or 1 without ties."""
    result: Floats = np.cumsum(ranks.first, axis=1)[:, _columns(ks)]
    return result


def ndcg(ranks: RankProbabilities, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Divide the discounted gain of the first k ranks by the largest possible.

    The largest possible gain is that of min(k, num_relevant) relevant items at the first ranks.
    """
    discount = 1 / np.log2(np.arange(ranks.relevant.shape[1]) + 2)
    gained = np.cumsum(ranks.relevant * discount, axis=1)[:, _columns(ks)]
    ideal = np.cumsum(discount)[np.minimum(num_relevant[:, None], np.asarray(ks)) - 1]
    result: Floats = gained / ideal
    return result


def mrr(ranks: RankProbabilities, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Return the mean of 1 / rank of the first relevant item, 0 where it is not in the first k."""
    rank = np.arange(ranks.first.shape[1]) + 1
    result: Floats = np.cumsum(ranks.first / rank, axis=1)[:, _columns(ks)]
    return result


RANKING_METRICS: Mapping[str, RankingMetric] = {
    "recall": recall,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
}
"""Metric functions by the name before the ``@``. Larger values are better."""


def is_share(metric: str) -> bool:
    """Return whether each user's value of a metric, such as "ndcg@10", is in [0, 1]."""
    name = metric.split("@")[0]
    return name in RANKING_METRICS or name == "popularity_percentile"


def list_mean(values: Floats, is_present: Bools, ks: Sequence[int]) -> Floats:
    """Average a value of items over the first k recommended items.

    Args:
        values: [Q, K] float64, the value at each rank, such as the training count of the item.
        is_present: [Q, K] bool, False after the end of a list.
        ks: cut-offs.

    Returns:
        [Q, len(ks)]; 0 for an empty list.
    """
    total = np.cumsum(np.where(is_present, values, 0.0), axis=1)
    length = np.maximum(np.cumsum(is_present, axis=1), 1)
    result: Floats = (total / length)[:, _columns(ks)]
    return result


def popularity_percentile(counts: Ints | Floats) -> Floats:
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


def _columns(ks: Sequence[int]) -> Ints:
    return np.asarray(ks, dtype=np.int64) - 1
