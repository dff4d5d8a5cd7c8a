"""Markov transitions and co-visits against their formulas by loops in float64."""

from __future__ import annotations

import numpy as np
import pytest

from candid.baselines.co_visits import CoVisits
from candid.baselines.markov import Markov
from candid.baselines.training_rows import training_rows


def transitions(shop_rows, window, distance_decay, discount, both_directions):
    counts, popularity = np.zeros((28, 28)), np.zeros(28)
    for row in shop_rows:
        for place, (item, is_target, _) in enumerate(row):
            popularity[item] += is_target
            for other in range(len(row)):
                distance = other - place
                if not both_directions and distance < 0:
                    continue
                if 1 <= abs(distance) <= window and row[other][1]:
                    counts[item, row[other][0]] += distance_decay ** (abs(distance) - 1)
    sums = counts.sum(axis=1, keepdims=True)
    divisor = np.where(sums == 0, 1, sums) * np.maximum(popularity, 1) ** discount
    return counts / divisor


@pytest.mark.parametrize("baseline", [Markov, CoVisits])
@pytest.mark.parametrize(
    ("window", "distance_decay", "discount", "decay"),
    [(1, 1.0, 0.0, 1.0), (3, 0.5, 0.5, 0.6), (50, 0.9, 0.25, 0.3)],
)
def test_scores_agree_with_the_formula(
    shop,
    shop_rows,
    shop_histories,
    make_queries,
    by_popularity,
    assert_same_order,
    baseline,
    window,
    distance_decay,
    discount,
    decay,
):
    config = baseline.Config(
        window=window, distance_decay=distance_decay, popularity_discount=discount, decay=decay
    )
    model = baseline.fit(training_rows(shop), config)
    matrix = transitions(shop_rows, window, distance_decay, discount, baseline is CoVisits)
    expected = np.zeros((len(shop_histories), 28))
    for row, history in enumerate(shop_histories):
        for age, item in enumerate(reversed(history)):
            expected[row] += decay**age * matrix[item]
    scores = model.score_catalog(make_queries(shop_histories))
    assert_same_order(scores, by_popularity(expected, shop_rows))
