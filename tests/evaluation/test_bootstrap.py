"""Bootstrap: distribution of weights, coverage of intervals, same resamples for a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from candid.evaluation.bootstrap import CHUNK, intervals, poisson_weights, resample


def test_weights_follow_a_poisson_distribution():
    weights = poisson_weights(np.random.default_rng(0), 500, 2000)
    share = [(weights == count).mean() for count in range(5)]
    expected = [math.exp(-1) / math.factorial(count) for count in range(5)]
    np.testing.assert_allclose(share, expected, atol=0.002)
    assert weights.mean() == pytest.approx(1, abs=0.004)
    assert weights.var() == pytest.approx(1, abs=0.008)


def mean_of_resamples(values, num_resamples, seed):
    num = len(values)
    both = np.stack([values, np.ones(num)], axis=1)
    zeros = np.zeros(num, dtype=np.int64)
    resampled = resample(
        np.arange(num),
        zeros,
        both,
        num_owners=num,
        num_groups=1,
        num_resamples=num_resamples,
        seed=seed,
    )
    return resampled[:, :, :1], resampled[:, :, 1:]


def test_standard_deviation_of_resamples_is_the_standard_error():
    values = np.random.default_rng(1).exponential(size=3000)
    top, bottom = mean_of_resamples(values, 4000, seed=0)
    assert (top / bottom).mean() == pytest.approx(values.mean(), abs=0.002)
    assert (top / bottom).std() == pytest.approx(values.std() / math.sqrt(3000), rel=0.05)


def test_intervals_cover_a_known_mean():
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(400):
        values = rng.binomial(1, 0.3, size=200).astype(float)
        low, high = intervals(*mean_of_resamples(values, 400, seed=trial), 0.9)
        covered += low[0, 0] <= 0.3 <= high[0, 0]
    # 400 trials at 0.9: the standard error is 0.015.
    assert 0.85 <= covered / 400 <= 0.94


def test_groups_are_summed_separately_and_owners_resampled_together():
    owners = np.array([0, 0, 1, 2])
    groups = np.array([0, 1, 1, 0])
    values = np.array([[1.0], [1.0], [10.0], [100.0]])
    resampled = resample(
        owners, groups, values, num_owners=3, num_groups=2, num_resamples=300, seed=0
    )
    first, second = resampled[:, 0, 0], resampled[:, 1, 0]
    # The weight of owner 0 can be read off both groups' last digit.
    small = (first < 1000) & (second < 100)
    assert small.mean() > 0.9
    assert ((first % 100)[small] == (second % 10)[small]).all()


def test_resamples_of_a_seed_across_chunks():
    num = CHUNK + 100
    values = np.random.default_rng(3).random(num)
    once, again = mean_of_resamples(values, 20, seed=5)[0], mean_of_resamples(values, 20, seed=5)[0]
    other = mean_of_resamples(values, 20, seed=6)[0]
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert np.median(once) == pytest.approx(values.sum(), rel=0.02)


def test_undefined_ratio_has_no_interval():
    low, high = intervals(np.zeros((50, 2)), np.stack([np.zeros(50), np.ones(50)], 1), 0.95)
    assert np.isnan(low[0])
    assert np.isnan(high[0])
    assert low[1] == high[1] == 0
