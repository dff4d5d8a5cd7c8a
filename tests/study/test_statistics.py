"""Tests of a difference over users and seeds: their level, their power, and scipy's values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from candid.study import statistics
from candid.study.statistics import paired_difference, rank_correlation

TRIALS = 1000
EFFECTS = {
    "users": (1.0, 0.0, 1.0),
    "users and seeds": (1.0, 0.1, 1.0),
    "seeds": (0.3, 0.3, 1.0),
    "only noise": (0.0, 0.0, 1.0),
}
"""Standard deviation of the effect of a user, of a seed, and of the rest."""


def differences(rng, effects, *, users=100, seeds=5, mean=0.0):
    user, seed, rest = effects
    return (
        mean
        + user * rng.standard_normal((users, 1))
        + seed * rng.standard_normal((1, seeds))
        + rest * rng.standard_normal((users, seeds))
    )


def of(values):
    return paired_difference(values, np.zeros_like(values))


@pytest.fixture(scope="module")
def null_trials():
    """Differences without an effect, for each kind of variance."""
    rng = np.random.default_rng(0)
    return {
        name: [of(differences(rng, effects)) for _ in range(TRIALS)]
        for name, effects in EFFECTS.items()
    }


@pytest.mark.parametrize("name", EFFECTS)
def test_false_positives_are_at_most_the_level(null_trials, name):
    # The standard error of the rate is .007.
    rate = np.mean([one.p_value < 0.05 for one in null_trials[name]])
    assert rate < 0.07
    if name != "only noise":  # there the test is careful by construction
        assert rate > 0.025


@pytest.mark.parametrize("name", EFFECTS)
def test_intervals_cover_the_mean(null_trials, name):
    assert np.mean([one.low <= 0 <= one.high for one in null_trials[name]]) > 0.93


@pytest.mark.parametrize("seeds", [2, 5])
def test_tails_hold_the_level_where_seeds_make_most_of_the_variance(seeds):
    """The least favourable case. The standard error of the rate at .005 is .0008."""
    rng = np.random.default_rng(11)
    effects = (1.0, np.sqrt(5 * seeds / 60), 1.0)
    trials = [of(differences(rng, effects, users=60, seeds=seeds)) for _ in range(4000)]
    tails = np.array([(one.p_above(0.0), one.p_below(0.0)) for one in trials])
    assert np.mean(tails < 0.05) < 0.055
    assert np.mean(tails < 0.005) < 0.0065


def test_tests_over_users_or_seeds_alone_claim_too_much():
    """The reason for both factors: each test alone rejects a true hypothesis far too often."""
    rng = np.random.default_rng(1)
    trials = np.stack([differences(rng, (1.0, 0.5, 1.0)) for _ in range(300)])
    by_user = stats.ttest_1samp(trials.mean(axis=2), 0, axis=1).pvalue
    trials = np.stack([differences(rng, (1.0, 0.0, 0.3)) for _ in range(300)])
    by_seed = stats.ttest_1samp(trials.mean(axis=1), 0, axis=1).pvalue
    assert np.mean(by_user < 0.05) > 0.3
    assert np.mean(by_seed < 0.05) > 0.3


def test_planted_difference_is_found_and_its_sign_is_that_of_first_minus_second():
    rng = np.random.default_rng(2)
    base = rng.standard_normal((400, 5))
    gain = differences(rng, (0.3, 0.02, 0.3), users=400, mean=0.1)
    found = paired_difference(base + gain, base)
    assert found.value == pytest.approx(gain.mean())
    assert found.p_value < 0.001
    assert 0 < found.low < 0.1 < found.high
    assert paired_difference(base, base + gain).value == -found.value


def test_one_seed_equals_the_paired_t_test_over_users():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 50))
    found = paired_difference(a[:, None], b[:, None])
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval()
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_seeds_with_the_same_values_equal_the_test_over_users():
    rng = np.random.default_rng(4)
    of_users = rng.random(50) - 0.4
    found = of(np.repeat(of_users[:, None], 3, axis=1))
    assert found.p_value == pytest.approx(stats.ttest_1samp(of_users, 0).pvalue)


def test_users_with_the_same_values_equal_the_test_over_seeds():
    rng = np.random.default_rng(5)
    of_seeds = rng.random(5) - 0.2
    found = of(np.repeat(of_seeds[None], 400, axis=0))
    assert found.p_value == pytest.approx(stats.ttest_1samp(of_seeds, 0).pvalue)


def test_one_sided_tests_equal_scipy():
    rng = np.random.default_rng(6)
    values = rng.standard_normal((40, 1)) + 0.2
    found = of(values)
    for bound in (-0.5, 0.0, 0.3):
        for side, p in (("greater", found.p_above(bound)), ("less", found.p_below(bound))):
            expected = stats.ttest_1samp(values[:, 0], bound, alternative=side).pvalue
            assert p == pytest.approx(expected)


def test_equivalence_is_claimed_only_with_enough_users():
    rng = np.random.default_rng(7)
    few = differences(rng, (1.0, 0.001, 0.5), users=30)
    few = of(few - few.mean())
    many = of(differences(rng, (1.0, 0.001, 0.5), users=20_000))
    assert few.p_value == pytest.approx(1.0)
    assert few.p_equivalent(0.05) > 0.05
    assert many.p_equivalent(0.05) < 0.001


def test_equivalence_at_the_margin_is_claimed_at_most_at_the_level():
    rng = np.random.default_rng(8)
    trials = [of(differences(rng, (1.0, 0.1, 1.0), users=1000, mean=0.3)) for _ in range(400)]
    assert np.mean([one.p_equivalent(0.3) < 0.05 for one in trials]) < 0.08
    assert np.mean([one.p_equivalent(0.6) < 0.05 for one in trials]) > 0.5


def test_identical_arms_have_an_interval_of_zero():
    found = of(np.zeros((10, 3)))
    assert (found.low, found.value, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert found.p_equivalent(0.001) == 0.0


def test_a_single_user_decides_nothing():
    found = of(np.ones((1, 3)))
    assert np.isnan(found.low)
    assert found.p_value == found.p_equivalent(10.0) == 1.0


def test_arms_of_other_users_are_refused():
    with pytest.raises(ValueError, match=r"same \[users, seeds\], got \(3, 2\) and \(4, 2\)"):
        paired_difference(np.ones((3, 2)), np.ones((4, 2)))


def test_rank_correlation_equals_scipy():
    rng = np.random.default_rng(9)
    x, y = rng.integers(0, 5, 40), rng.normal(size=40)
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]).value)


def test_interval_of_rank_correlation_covers_the_truth():
    rng = np.random.default_rng(10)
    # Spearman's correlation of a normal pair with Pearson's correlation r is 6/π·asin(r/2).
    r = 0.8
    truth = 6 / np.pi * np.arcsin(r / 2)
    x = rng.standard_normal((600, 30))
    y = r * x + np.sqrt(1 - r * r) * rng.standard_normal((600, 30))
    found = [rank_correlation(one, two) for one, two in zip(x, y, strict=True)]
    cover = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.92 < cover < 0.98


def test_interval_over_groups_covers_the_truth_where_pairs_of_a_group_depend(monkeypatch):
    """Groups shift x and y independently, so that the true correlation is 0."""
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 200)
    rng = np.random.default_rng(12)
    groups = np.repeat(np.arange(8), 6).astype(str)
    alone = together = 0
    for _ in range(40):
        x, y = 3 * rng.standard_normal((2, 8)).repeat(6, axis=1) + rng.standard_normal((2, 48))
        one, two = rank_correlation(x, y), rank_correlation(x, y, groups=groups)
        assert one.value == two.value
        alone += one.low <= 0 <= one.high
        together += two.low <= 0 <= two.high
    assert alone < 28 < 32 <= together
