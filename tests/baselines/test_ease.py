"""EASE against the solution of its least-squares problem, one item at a time."""

from __future__ import annotations

import numpy as np
import pytest

from candid.baselines.ease import EASE
from candid.baselines.training_rows import training_rows
from candid.errors import ConfigError


@pytest.mark.parametrize(("l2", "decay"), [(0.5, 1.0), (30.0, 0.6)])
def test_scores_agree_with_least_squares(shop, shop_rows, shop_histories, make_queries, l2, decay):
    items = np.zeros((len(shop_rows), 28))
    for user, row in enumerate(shop_rows):
        items[user, [item for item, _, _ in row]] = 1
    weights = np.zeros((28, 28))
    for item in range(28):  # ridge regression of an item on all others
        others = np.delete(np.arange(28), item)
        x = items[:, others]
        gram = x.T @ x + l2 * np.eye(27)
        weights[others, item] = np.linalg.solve(gram, x.T @ items[:, item])
    model = EASE.fit(training_rows(shop), EASE.Config(l2=l2, decay=decay))
    scores = model.score_catalog(make_queries(shop_histories)).numpy()
    counts = training_rows(shop).target_counts
    for row, history in enumerate(shop_histories):
        if not history:
            order = np.sign(scores[row][:, None] - scores[row])
            assert (order == np.sign(counts[:, None] - counts)).all()
            continue
        vector = np.zeros(28)
        for age, item in enumerate(reversed(history)):
            vector[item] = vector[item] or decay**age
        np.testing.assert_allclose(scores[row], vector @ weights, atol=1e-6)


def test_large_catalog_is_refused(shop):
    with pytest.raises(ConfigError, match="more than max_items = 27: prepare the data without"):
        EASE.fit(training_rows(shop), EASE.Config(max_items=27))
