"""Paired comparison of two models."""

from __future__ import annotations

import numpy as np
import pytest

from candid.errors import DataError, UnknownNameError
from candid.evaluation import EvaluationConfig, PerUser, compare, evaluate


def values(numerators, user_ids=None, denominators=None):
    numerators = np.asarray(numerators, dtype=float)
    users = np.arange(len(numerators)) if user_ids is None else np.asarray(user_ids)
    weights = np.ones(len(numerators)) if denominators is None else np.asarray(denominators)
    return PerUser(users, ("ndcg@10",), numerators[:, None], weights[:, None].astype(float))


def test_difference_is_over_the_users_in_both_reports():
    first = values([1, 0, 1, 0.5], user_ids=[1, 2, 5, 9], denominators=[1, 1, 1, 0])
    second = values([0, 0.5, 0.5, 1], user_ids=[0, 1, 5, 9])
    result = compare(first, second, "ndcg@10")
    assert result.users == 2
    assert result.difference == pytest.approx((0.5 + 0.5) / 2)


def test_p_value_of_few_users_is_exact():
    """Only two of the 2^6 sign patterns of equal gains are as extreme."""
    result = compare(values(np.ones(6)), values(np.zeros(6)), "ndcg@10", resamples=20_000)
    assert result.p_value == pytest.approx(2 / 64, abs=0.004)


def test_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(0)
    p_values = [
        compare(values(a), values(b), "ndcg@10", resamples=199, seed=trial).p_value
        for trial, (a, b) in enumerate(rng.random((300, 2, 40)))
    ]
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_interval_of_a_clear_gain_excludes_zero():
    rng = np.random.default_rng(1)
    base = rng.random(500)
    result = compare(values(base + 0.1 + 0.2 * rng.standard_normal(500)), values(base), "ndcg@10")
    assert 0 < result.low < result.difference < result.high
    assert result.low < 0.1 < result.high
    assert result.p_value == pytest.approx(1 / 1001)


def test_comparison_of_a_model_with_itself(make_random):
    dataset, model = make_random(max_targets=3)
    config = EvaluationConfig(ks=(10,), intervals=False)
    report = evaluate(model, dataset, config, max_length=5)
    result = compare(report, report, "nll")
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    # Equal values of all users do not prove equality: the interval has a width.
    result = compare(report, report, "ndcg@10")
    assert (result.difference, result.p_value) == (0, 1)
    assert result.low == -result.high
    assert 0 < result.high < 2 / result.users


@pytest.mark.parametrize(
    ("first", "second"), [(0.02, 0.05), (0.05, 0.05), (0.05, 0.1), (0.2, 0.25)]
)
def test_paired_intervals_of_100_users_cover_the_true_difference(first, second):
    """1,000 samples of recall: the standard error of 95 % is .7 points; .93 is below by three."""
    rng = np.random.default_rng(3)
    shared, other = rng.random((2, 1000, 100))
    own = np.where(rng.random((1000, 100)) < 0.7, shared, other)
    results = [
        compare(values(a < first), values(b < second), "ndcg@10", resamples=1)
        for a, b in zip(shared, own, strict=True)
    ]
    covered = [one.low <= first - second <= one.high for one in results]
    assert np.mean(covered) > 0.93


def test_a_single_user_has_no_interval():
    result = compare(values([1.0]), values([0.0]), "ndcg@10")
    assert (result.difference, result.low, result.high) == (1, None, None)


def test_difference_of_weighted_metrics_equals_that_of_the_totals(make_random):
    dataset, model = make_random(max_targets=4)
    config = EvaluationConfig(ks=(10,), intervals=False)
    first = evaluate(model, dataset, config, max_length=5)
    model.items = model.items.flip(0)
    second = evaluate(model, dataset, config, max_length=5)
    for metric in ("ndcg@10", "nll"):
        expected = first.metrics[metric].value - second.metrics[metric].value
        assert compare(first, second, metric).difference == pytest.approx(expected, abs=1e-12)


def test_compare_without_common_users_or_metric():
    one = values([1.0])
    with pytest.raises(UnknownNameError, match="ndcg@10"):
        compare(one, one, "ndcg@1")
    with pytest.raises(DataError, match="share no user"):
        compare(one, values([1.0], user_ids=[7]), "ndcg@10")
