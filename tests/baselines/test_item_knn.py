"""Item kNN against its formula by loops in float64."""

from __future__ import annotations

import numpy as np
import pytest

from candid.baselines import item_knn
from candid.baselines.item_knn import ItemKNN
from candid.baselines.training_rows import training_rows


def similarities(shop_rows, shrinkage, neighbours):
    sources = [{item for item, _, _ in row} for row in shop_rows]
    targets = [{item for item, is_target, _ in row if is_target} for row in shop_rows]
    matrix = np.zeros((28, 28))
    for i in range(28):
        for j in range(28):
            both = sum(i in a and j in b for a, b in zip(sources, targets, strict=True))
            norm = np.sqrt(sum(i in a for a in sources)) * np.sqrt(sum(j in b for b in targets))
            if both and i != j:
                matrix[i, j] = both / (norm + shrinkage)
        kept = np.lexsort([np.arange(28), -matrix[i].astype(np.float32)])[:neighbours]
        matrix[i, np.setdiff1d(np.arange(28), kept)] = 0
    return matrix


@pytest.mark.parametrize(
    ("shrinkage", "neighbours", "decay"), [(0.0, 100, 1.0), (3.0, 5, 0.7), (20.0, 1, 0.5)]
)
@pytest.mark.parametrize("block", [1, 200, 10**6])
def test_scores_agree_with_the_formula(
    shop,
    shop_rows,
    shop_histories,
    make_queries,
    by_popularity,
    assert_same_order,
    monkeypatch,
    shrinkage,
    neighbours,
    decay,
    block,
):
    whole = item_knn.blocks_of_rows
    monkeypatch.setattr(item_knn, "blocks_of_rows", lambda costs: whole(costs, block))
    config = ItemKNN.Config(shrinkage=shrinkage, neighbours=neighbours, decay=decay)
    model = ItemKNN.fit(training_rows(shop), config)
    matrix = similarities(shop_rows, shrinkage, neighbours)
    expected = np.zeros((len(shop_histories), 28))
    for row, history in enumerate(shop_histories):
        for age, item in enumerate(reversed(history)):
            expected[row] += decay**age * matrix[item]
    scores = model.score_catalog(make_queries(shop_histories))
    assert_same_order(scores, by_popularity(expected, shop_rows))
