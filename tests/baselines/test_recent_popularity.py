"""Recent popularity against counts by a loop."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from candid.baselines.recent_popularity import RecentPopularity
from candid.baselines.training_rows import training_rows


@pytest.mark.parametrize("share", [0.001, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("has_times", [True, False])
def test_order_is_that_of_the_latest_targets(
    shop, shop_rows, shop_histories, make_queries, share, has_times
):
    if not has_times:
        shop = dataclasses.replace(shop, timestamps=None)
    model = RecentPopularity.fit(training_rows(shop), RecentPopularity.Config(share=share))
    scores = model.score_catalog(make_queries(shop_histories)).numpy()
    targets = [[(i, t) for i, is_target, t in row if is_target] for row in shop_rows]
    every = sorted((t for row in targets for _, t in row), reverse=True)
    cut = every[max(1, round(share * len(every))) - 1]
    recent, total = np.zeros(28), np.zeros(28)
    for row in targets:
        for place, (item, time) in enumerate(reversed(row), start=1):
            total[item] += 1
            is_recent = time >= cut if has_times else place <= math.ceil(share * len(row))
            recent[item] += is_recent
    keys = recent * 1000 + total
    for row in scores:
        assert (np.sign(row[:, None] - row) == np.sign(keys[:, None] - keys)).all()
