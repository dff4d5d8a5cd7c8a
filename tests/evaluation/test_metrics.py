"""Ranking metrics against trec_eval (through ir-measures) and hand-computed values."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, P, R, Success, nDCG

from candid.evaluation.metrics import (
    RANKING_METRICS,
    RankProbabilities,
    average_precision,
    hit_rate,
    list_mean,
    mrr,
    ndcg,
    popularity_percentile,
    precision,
    recall,
)

KS = (1, 3, 10, 20)


def without_ties(is_relevant):
    """Ranks of which it is certain whether they are relevant: [Q, K] bool."""
    relevant = np.asarray(is_relevant, dtype=float)
    first = relevant * (np.cumsum(relevant, axis=1) == 1)
    return RankProbabilities(relevant, first, relevant * np.cumsum(relevant, axis=1))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_trec_eval(seed):
    rng = np.random.default_rng(seed)
    num_queries, num_items, length = 40, 60, 20
    lists = np.stack([rng.permutation(num_items)[:length] for _ in range(num_queries)])
    relevant = [
        rng.choice(num_items, rng.integers(1, 30), replace=False) for _ in range(num_queries)
    ]
    is_relevant = np.stack(
        [np.isin(one, wanted) for one, wanted in zip(lists, relevant, strict=True)]
    )
    num_relevant = np.array([len(wanted) for wanted in relevant])

    qrels = [
        ir_measures.Qrel(str(q), str(item), 1) for q in range(num_queries) for item in relevant[q]
    ]
    measures = {"recall": R, "hit_rate": Success, "ndcg": nDCG, "precision": P, "map": AP}
    for column, k in enumerate(KS):
        run = [
            ir_measures.ScoredDoc(str(q), str(item), float(length - rank))
            for q in range(num_queries)
            for rank, item in enumerate(lists[q][:k])
        ]
        # The reciprocal rank of trec_eval has no cut-off; the run is cut instead.
        wanted = {name: measure @ k for name, measure in measures.items()} | {"mrr": RR}
        evaluator = ir_measures.pytrec_eval.evaluator(wanted.values(), qrels)
        expected = {(one.query_id, one.measure): one.value for one in evaluator.iter_calc(run)}
        for name, metric in RANKING_METRICS.items():
            values = metric(without_ties(is_relevant), num_relevant, KS)[:, column]
            oracle = [expected[str(q), wanted[name]] for q in range(num_queries)]
            np.testing.assert_allclose(values, oracle, atol=1e-6, err_msg=f"{name}@{k}")
            assert k != 3 or len(set(oracle)) > 1


def test_metrics_of_a_list_computed_by_hand():
    ranks = without_ties([[False, True, True], [False, False, False]])
    num_relevant = np.array([4, 1])
    assert recall(ranks, num_relevant, (1, 2, 3)).tolist() == [[0, 0.25, 0.5], [0, 0, 0]]
    assert hit_rate(ranks, num_relevant, (1, 2, 3)).tolist() == [[0, 1, 1], [0, 0, 0]]
    assert mrr(ranks, num_relevant, (1, 2, 3)).tolist() == [[0, 0.5, 0.5], [0, 0, 0]]
    assert precision(ranks, num_relevant, (1, 2, 3)).tolist() == [[0, 1 / 2, 2 / 3], [0, 0, 0]]
    average = average_precision(ranks, num_relevant, (1, 2, 3))
    np.testing.assert_allclose(average, [[0, 1 / 2 / 4, (1 / 2 + 2 / 3) / 4], [0, 0, 0]])
    third = 1 / np.log2(3)
    np.testing.assert_allclose(
        ndcg(ranks, num_relevant, (2, 3))[0],
        [third / (1 + third), (third + 0.5) / (1 + third + 0.5)],
    )


def test_ndcg_of_a_perfect_list_is_one():
    ranks = without_ties([[True, True, True, False]])
    assert ndcg(ranks, np.array([3]), (1, 2, 3, 4)).tolist() == [[1, 1, 1, 1]]


def test_list_mean_ignores_missing_items():
    values = np.array([[1.0, 2.0, 0.0], [30.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    is_present = np.array([[True, True, False], [True, False, False], [False, False, False]])
    assert list_mean(values, is_present, (1, 3)).tolist() == [[1, 1.5], [30, 30], [0, 0]]


def test_popularity_percentile_with_ties():
    counts = np.array([5, 0, 5, 100])
    assert popularity_percentile(counts).tolist() == [0.5, 0.125, 0.5, 0.875]
    ties = np.random.default_rng(0).integers(0, 4, 97)
    assert popularity_percentile(ties).mean() == pytest.approx(0.5, abs=1e-12)
