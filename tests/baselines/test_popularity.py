"""Popularity against counts by a loop."""

from __future__ import annotations

import numpy as np

from candid.baselines.popularity import Popularity
from candid.baselines.training_rows import training_rows


def test_order_is_that_of_the_counts(shop, shop_rows, shop_histories, make_queries):
    model = Popularity.fit(training_rows(shop), Popularity.Config())
    scores = model.score_catalog(make_queries(shop_histories)).numpy()
    counts = np.zeros(28)
    for row in shop_rows:
        for item, is_target, _ in row:
            counts[item] += is_target
    assert scores.shape == (len(shop_histories), 28)
    for row in scores:
        assert (np.sign(row[:, None] - row) == np.sign(counts[:, None] - counts)).all()
