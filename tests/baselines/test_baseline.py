"""The weights of a history, and the order of items without a score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from candid.baselines import history_matrix
from candid.baselines.baseline import below_zero
from candid.batches import History, Queries


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_history_weights_agree_with_a_loop(make_queries, shop_histories, decay, distinct):
    matrix = history_matrix(make_queries(shop_histories), 28, decay=decay, distinct=distinct)
    for row, history in enumerate(shop_histories):
        weights = np.zeros(28)
        for age, item in enumerate(reversed(history)):
            if not (distinct and weights[item]):
                weights[item] += decay**age
        np.testing.assert_allclose(matrix.toarray()[row], weights, rtol=1e-6)


def test_queries_may_share_a_sequence():
    history = History(
        item_ids=torch.tensor([4, 5, 6, 7]),
        offsets=torch.tensor([0, 0, 3, 4]),
        query_positions=torch.tensor([2, 0, -1, 3]),
    )
    queries = Queries(user_ids=torch.zeros(4, dtype=torch.int64), history=history)
    matrix = history_matrix(queries, 9, decay=0.5).toarray()
    expected = np.zeros((4, 9))
    expected[0, [4, 5, 6]] = [0.25, 0.5, 1]
    expected[1, 4] = expected[3, 7] = 1
    assert matrix.tolist() == expected.tolist()


def test_queries_without_histories_have_no_weights():
    queries = Queries(user_ids=torch.zeros(3, dtype=torch.int64))
    assert history_matrix(queries, 5).toarray().tolist() == np.zeros((3, 5)).tolist()


def test_scores_below_zero_keep_order_and_ties():
    scores = below_zero(np.array([5.0, 0.0, 2.0, 5.0, 1e9]))
    assert ((scores > -1) & (scores < 0)).all()
    assert scores[0] == scores[3]
    assert scores[1] < scores[2] < scores[0] < scores[4]
