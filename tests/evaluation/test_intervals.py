"""Intervals against scipy, textbook forms and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from candid.evaluation.intervals import difference_interval, ratio_intervals, student_t


def one_interval(values, weights=None, *, is_share, confidence=0.95):
    weights = np.ones(len(values)) if weights is None else weights
    low, high = ratio_intervals(
        np.asarray(values, dtype=float)[:, None],
        np.asarray(weights, dtype=float)[:, None],
        np.zeros(len(values), dtype=np.int64),
        num_groups=1,
        is_share=np.array([is_share]),
        confidence=confidence,
    )
    return low[0, 0], high[0, 0]


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 99, 1000, 10**6])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.999])
def test_student_t_equals_scipy(degrees, confidence):
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_t(confidence, degrees) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("hits", [0, 1, 5, 50, 99, 100])
def test_interval_of_a_binary_metric_is_that_of_wilson(hits):
    """Scipy's interval has normal quantiles: its confidence is set to give the same quantile."""
    values = np.zeros(100)
    values[:hits] = 1
    confidence = 2 * stats.norm.cdf(stats.t.ppf(0.975, 99)) - 1
    expected = stats.binomtest(hits, 100).proportion_ci(confidence, method="wilson")
    assert one_interval(values, is_share=True) == pytest.approx((expected.low, expected.high))


def test_interval_of_a_share_solves_the_score_equation():
    """Each end m satisfies |value - m| = t·√(φ·m(1 - m)/n)."""
    values = np.random.default_rng(0).beta(0.3, 3, 60)
    mean, n = values.mean(), len(values)
    phi = values.var() / (mean * (1 - mean))
    for end in one_interval(values, is_share=True):
        spread = stats.t.ppf(0.975, n - 1) * np.sqrt(phi * end * (1 - end) / n)
        assert abs(mean - end) == pytest.approx(spread)


def test_interval_of_other_values_is_that_of_student():
    values = np.random.default_rng(1).exponential(size=40)
    expected = stats.t.interval(0.9, 39, values.mean(), stats.sem(values))
    assert one_interval(values, is_share=False, confidence=0.9) == pytest.approx(expected)


def test_standard_error_of_a_ratio_is_that_of_many_samples():
    """Sums over users with different numbers of targets, from 4,000 samples of 500 users."""
    rng = np.random.default_rng(2)
    weights = rng.geometric(0.4, (4000, 500)).astype(float)
    values = rng.gamma(weights, 2.0)
    ratios = values.sum(axis=1) / weights.sum(axis=1)
    widths = []
    for row in range(50):
        low, high = one_interval(values[row], weights[row], is_share=False)
        widths.append(high - low)
    assert np.mean(widths) / 2 / 1.965 == pytest.approx(ratios.std(), rel=0.05)


def test_groups_and_metrics_are_separate():
    rng = np.random.default_rng(3)
    values = rng.random((200, 2))
    weights = (rng.random((200, 2)) < 0.8).astype(float)
    groups = rng.integers(0, 3, 200)
    values *= weights
    low, high = ratio_intervals(
        values,
        weights,
        groups,
        num_groups=4,
        is_share=np.array([True, False]),
        confidence=0.95,
    )
    for group in range(3):
        for column, is_share in enumerate([True, False]):
            rows = (groups == group) & (weights[:, column] > 0)
            expected = one_interval(values[rows, column], is_share=is_share)
            assert (low[group, column], high[group, column]) == pytest.approx(expected)
    assert np.isnan(low[3]).all()
    assert np.isnan(high[3]).all()


@pytest.mark.parametrize("is_share", [True, False])
def test_one_user_has_no_interval(is_share):
    assert np.isnan(one_interval([0.3], is_share=is_share)).all()
    assert np.isnan(one_interval([0.3, 0.0], [1, 0], is_share=is_share)).all()
    assert np.isnan(
        difference_interval(np.ones(1), np.ones(1), is_share=is_share, confidence=0.95)
    ).all()


def test_difference_of_shares_has_one_more_user():
    """The moments of n users and one of mean 0 and mean square 1/2, as sums over a list."""
    gains = np.random.default_rng(4).uniform(-1, 1, 30)
    added = [np.sqrt(0.5), -np.sqrt(0.5)]
    mean = gains.sum() / 31
    square = (sum(gains**2) + sum(x * x / 2 for x in added)) / 31
    half = stats.t.ppf(0.975, 29) * np.sqrt((square - mean**2) / 31)
    interval = difference_interval(gains, np.ones(30), is_share=True, confidence=0.95)
    assert interval == pytest.approx((mean - half, mean + half))
    low, high = difference_interval(np.zeros(30), np.ones(30), is_share=True, confidence=0.95)
    assert -low == high == pytest.approx(stats.t.ppf(0.975, 29) * np.sqrt(0.5) / 31)


def test_difference_of_other_values_is_that_of_student():
    gains = np.random.default_rng(5).normal(1, 2, 30)
    expected = stats.t.interval(0.95, 29, gains.mean(), stats.sem(gains))
    interval = difference_interval(gains, np.ones(30), is_share=False, confidence=0.95)
    assert interval == pytest.approx(expected)


@pytest.mark.parametrize("probability", [0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("metric", ["recall@10", "ndcg@10"])
def test_intervals_of_100_users_cover_the_true_value(probability, metric):
    """1,000 samples: the standard error of 95 % is .7 points. Wilson's form varies by 2 points."""
    rng = np.random.default_rng(6)
    gain = np.ones(10) if metric == "recall@10" else 1 / np.log2(np.arange(10) + 2)
    ranks = rng.integers(0, 10, (1000, 100))
    values = (rng.random((1000, 100)) < probability) * gain[ranks]
    true = probability * gain.mean()
    ends = np.array([one_interval(row, is_share=True) for row in values])
    covered = (ends[:, 0] <= true) & (true <= ends[:, 1])
    assert 0.92 <= covered.mean() <= 0.99


def test_interval_ends_where_the_values_end():
    """Few users: the t interval of values from 0 begins below 0, unless the end is known."""
    values = np.array([[4.0, 4.0, 0.2], [0.0, 0.0, 0.1]])
    low, high = ratio_intervals(
        values,
        np.ones((2, 3)),
        np.zeros(2, dtype=np.int64),
        num_groups=1,
        is_share=np.zeros(3, dtype=np.bool_),
        confidence=0.95,
        is_signed=np.array([True, False, False]),
    )
    expected = stats.t.interval(0.95, 1, 2.0, stats.sem(values[:, 0]))
    assert (low[0, 0], high[0, 0]) == pytest.approx(expected)
    assert (low[0, 1], high[0, 1]) == pytest.approx((0, expected[1]))
    assert low[0, 2] == 0
    gains = np.array([1.0, 1.0, 0.0])
    assert difference_interval(gains, np.ones(3), is_share=True, confidence=0.95)[1] == 1
    assert difference_interval(-gains, np.ones(3), is_share=True, confidence=0.95)[0] == -1
