"""Predictions for the demo, compared with dense arithmetic on the true distribution."""

import numpy as np
import pytest

from candid.audit import Estimator
from candid.demo.prediction import predict
from candid.synthetic import SyntheticConfig, SyntheticData

CONFIG = SyntheticConfig(
    num_items=30, num_users=40, num_topics=3, interactions_mean=8.0, history_length=1
)


def test_mean_probability_and_distances_are_those_of_the_true_distribution():
    prediction = predict(CONFIG, (4,), [Estimator("logq")], num_users=40)
    data = SyntheticData(CONFIG)
    frame = data.interactions(0, CONFIG.num_users)
    items, users = frame["item_id"].to_numpy(), frame["user_id"].to_numpy()
    counts = np.maximum(np.bincount(items, minlength=30), 1)
    q = counts / counts.sum()
    # The row of each user is random: the same choice as that of the audit's inputs.
    starts = np.searchsorted(users, np.arange(41))
    rng = np.random.default_rng(0)
    rng.permutation(40)
    targets = starts[:-1] + rng.integers(1, np.diff(starts))
    log_p = data.log_probs(np.arange(40), items[targets - 1], np.arange(41))
    p = np.exp(log_p)
    assert prediction.mean_p == pytest.approx((p**2).sum(axis=1).mean(), rel=1e-5)
    chi2 = (p**2 / q).sum(axis=1) - 1
    kl = (p * (log_p - np.log(q))).sum(axis=1)
    assert prediction.chi2 == pytest.approx(np.quantile(chi2, [0.1, 0.5, 0.9]), rel=1e-4)
    assert prediction.kl == pytest.approx(np.quantile(kl, [0.1, 0.5, 0.9]), rel=1e-4)
    assert prediction.to_json()["chi2"]["median"] == prediction.chi2[1]


def test_drift_of_one_number_of_candidates_does_not_depend_on_the_others():
    one = predict(CONFIG, (8,), [Estimator("refined")], num_users=4)
    two = predict(CONFIG, (4, 8), [Estimator("refined")], num_users=4)
    key = (8, Estimator("refined"))
    assert one.drifts[key].mean == two.drifts[key].mean
    assert two.drifts[4, Estimator("refined")].mean > one.drifts[key].mean
