"""Ranking metrics as pure functions of the probabilities of relevance at each rank.

Each takes ``ranks`` (probabilities [Q, K], best rank first), ``num_relevant`` [Q] (number of
relevant items of the query, in the list or not, at least 1) and the cut-offs ``ks``, and returns
float64 [Q, len(ks)]. Relevance is binary; probabilities other than 0 and 1 come from tied items,
and the value is then the expectation over their orders (``candid.evaluation.ties``).

Definitions follow Järvelin & Kekäläinen (2002) for NDCG, with gain 1 and discount
1 / log2(rank + 1), and trec_eval for the rest. Metrics that ignore relevance are means of item
values (``list_mean``), or in ``candid.evaluation.diversity``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankProbabilities:
    """Probabilities of relevance at the first K ranks of Q queries, over the orders of tied items.

    Attributes:
        relevant: [Q, K] float64, that the item at the rank is relevant.
        first: [Q, K] float64, that it is the first relevant item of the list.
        relevant_up_to: [Q, K] float64, the expected number of relevant items up to and including
            the rank, counted only where the item at the rank is relevant.
    """

    relevant: Floats
    first: Floats
    relevant_up_to: Floats

    @cached_property
    def num_found(self) -> Floats:
        """The expected number of relevant items up to and including each rank: [Q, K]."""
        found: Floats = np.cumsum(self.relevant, axis=1)
        return found


RankingMetric = Callable[[RankProbabilities, Ints, Sequence[int]], Floats]


def recall(ranks: RankProbabilities, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Compute the share of the relevant items of a query that are in the first k ranks."""
    result: Floats = ranks.num_found[:, _columns(ks)] / num_relevant[:, None]
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


def precision(ranks: RankProbabilities, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Compute the share of relevant items among the first k ranks; missing items count."""
    result: Floats = ranks.num_found[:, _columns(ks)] / np.asarray(ks)
    return result


def average_precision(ranks: RankProbabilities, num_relevant: Ints, ks: Sequence[int]) -> Floats:
    """Sum the precision at the rank of each relevant item in the first k, over ``num_relevant``.

    The mean over users is MAP@k, ``map_cut`` of trec_eval.
    """
    rank = np.arange(ranks.relevant_up_to.shape[1]) + 1
    gained = np.cumsum(ranks.relevant_up_to / rank, axis=1)[:, _columns(ks)]
    result: Floats = gained / num_relevant[:, None]
    return result


RANKING_METRICS: Mapping[str, RankingMetric] = {
    "recall": recall,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
    "precision": precision,
    "map": average_precision,
}
"""Metric functions by the name before the ``@``. Larger values are better."""

DEFAULT_METRICS = (
    *RANKING_METRICS,
    "serendipity",
    "popularity",
    "popularity_percentile",
    "mean_inv_user_freq",
    "coverage",
)
"""Names of the metrics that an evaluation reports by default, in the order of a report."""
METRICS = (*DEFAULT_METRICS, "intra_list_diversity")
"""Names of all metrics with a cut-off."""


def is_share(metric: str) -> bool:
    """Return whether each user's value of a metric, such as "ndcg@10", is in [0, 1]."""
    name = metric.split("@")[0]
    return name in RANKING_METRICS or name in ("serendipity", "popularity_percentile")


def is_signed(metric: str) -> bool:
    """Return whether a user's value of a metric may be negative."""
    return metric == "excess_nll"


def list_mean(values: Floats, is_present: Bools, ks: Sequence[int]) -> Floats:
    """Average a value of items over the first k recommended items.

    Args:
        values: [Q, K] float64, the value at each rank, such as the training count of the item; 0
            after the end of a list.
        is_present: [Q, K] bool, whether the rank has an item of the catalog.
        ks: cut-offs.

    Returns:
        [Q, len(ks)]; 0 for an empty list.
    """
    total = np.cumsum(values, axis=1)[:, _columns(ks)]
    length = np.cumsum(is_present, axis=1)[:, _columns(ks)]
    result: Floats = total / np.maximum(length, 1)
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
