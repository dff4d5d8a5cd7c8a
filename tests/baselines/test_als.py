"""ALS against the equations of its factors in float64."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from candid.baselines import measure_baselines
from candid.baselines.als import ALS
from candid.baselines.training_rows import training_rows
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig


def solved(fixed, has_item, confidence, l2):
    """Solve (FᵀCF + l2·I) x = FᵀCp for each row of ``has_item`` [n, m], F [m, D]: [n, D]."""
    rows = []
    for has in has_item:
        c = np.where(has > 0, confidence, 1.0)
        gram = fixed.T @ (c[:, None] * fixed) + l2 * np.eye(fixed.shape[1])
        rows.append(np.linalg.solve(gram, fixed.T @ (c * has)))
    return np.array(rows)


def test_scores_agree_with_the_equations(shop, shop_rows, shop_histories, make_queries):
    pytest.importorskip("implicit")
    config = ALS.Config(factors=6, confidence=4.0, l2=0.7, iterations=200)
    model = ALS.fit(training_rows(shop), config)
    items = model.item_factors.astype(np.float64)

    # The item factors solve the equations with the users' factors, which solve theirs.
    matrix = np.zeros((len(shop_rows), 28))
    for user, row in enumerate(shop_rows):
        matrix[user, [item for item, _, _ in row]] = 1
    users = solved(items, matrix, 4.0, 0.7)
    np.testing.assert_allclose(items, solved(users, matrix.T, 4.0, 0.7), atol=2e-2)

    histories = np.zeros((len(shop_histories), 28))
    for row, history in enumerate(shop_histories):
        histories[row, history] = 1
    expected = solved(items, histories, 4.0, 0.7) @ items.T
    scores = model.score_catalog(make_queries(shop_histories)).numpy()
    for row, history in enumerate(shop_histories):
        if history:
            np.testing.assert_allclose(scores[row], expected[row], atol=1e-4)
        else:
            counts = shop.train_counts
            order = np.sign(scores[row][:, None] - scores[row])
            assert (order == np.sign(counts[:, None] - counts)).all()


def test_missing_package_is_named_with_its_command(shop, monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    monkeypatch.setitem(sys.modules, "implicit", None)
    command = r"pip install 'candid-retrieval\[als\]'"
    with pytest.raises(ConfigError, match=command):
        ALS.fit(training_rows(shop), ALS.Config())
    config = EvaluationConfig(ks=(5,), metric="ndcg@5", filter_seen=False)
    with pytest.raises(ConfigError, match=command):
        measure_baselines(shop, config, names=["als"])
