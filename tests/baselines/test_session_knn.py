"""Session kNN against its formula by loops in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from candid.baselines import session_knn
from candid.baselines.session_knn import SessionKNN
from candid.baselines.training_rows import training_rows


def nearest_sessions(shop_rows, history, user, config, has_times):
    """Return the (similarity, user) of the neighbours of one query."""
    ends = {u: row[-1][2] if has_times else u for u, row in enumerate(shop_rows) if row}
    latest_first = sorted(ends, key=lambda u: (-ends[u], u))
    similarity = {}
    for item in set(history):
        age = history[::-1].index(item)
        having = [u for u in latest_first if item in {i for i, _, _ in shop_rows[u]}]
        for one in having[: config.sessions_per_item]:
            if one != user:
                similarity[one] = similarity.get(one, 0) + config.decay**age
    order = sorted(similarity, key=lambda u: (-np.float32(similarity[u]), latest_first.index(u)))
    return [(similarity[u], u) for u in order[: config.neighbours]]


@pytest.mark.parametrize(
    "settings",
    [
        {"neighbours": 1000, "sessions_per_item": 1000, "decay": 1.0},
        {"neighbours": 4, "sessions_per_item": 6, "decay": 0.5, "popularity_discount": 0.5},
        {"neighbours": 1, "sessions_per_item": 2, "decay": 0.9, "popularity_discount": 1.0},
    ],
)
@pytest.mark.parametrize("has_times", [True, False])
@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_scores_agree_with_the_formula(
    shop,
    shop_rows,
    shop_histories,
    make_queries,
    by_popularity,
    assert_same_order,
    monkeypatch,
    settings,
    has_times,
    block,
):
    whole = session_knn.blocks_of_rows
    monkeypatch.setattr(session_knn, "blocks_of_rows", lambda costs: whole(costs, block))
    if not has_times:
        shop = dataclasses.replace(shop, timestamps=None)
    config = SessionKNN.Config(**settings)
    model = SessionKNN.fit(training_rows(shop), config)
    user_ids = [*range(len(shop_histories) - 4), -1, -1, -1, -1]
    popularity = shop.train_counts.astype(np.float64)
    expected = np.zeros((len(shop_histories), 28))
    for row, history in enumerate(shop_histories):
        for similarity, user in nearest_sessions(
            shop_rows, history, user_ids[row], config, has_times
        ):
            for item in {i for i, is_target, _ in shop_rows[user] if is_target}:
                discount = popularity[item] ** config.popularity_discount
                expected[row, item] += similarity / discount
    scores = model.score_catalog(make_queries(shop_histories, user_ids))
    assert_same_order(scores, by_popularity(expected, shop_rows))
