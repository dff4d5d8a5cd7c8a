import math

import pytest

from candid.audit import AuditEntry, Cost, CostBudget, Estimator, EstimatorStatistics
from candid.audit.recommendation import ranked, recommend
from candid.errors import ConfigError


def entry(name, bias, rmse, ms, mb=1.0):
    statistics = EstimatorStatistics(bias, 0.001, rmse, 0.0, 0.0, 10.0, 64, 100.0)
    return AuditEntry(
        name=name,
        num_candidates=256,
        estimator=Estimator(),
        sampler={},
        is_recipe=False,
        num_scores=256,
        statistics={"trained": {"all": statistics}},
        cost=Cost(ms, mb),
    )


ROUGH = entry("rough", 0.3, 0.31, 0.1)
NOISY = entry("noisy", 0.0, 0.5, 1.0)
BEST = entry("best", 0.01, 0.1, 4.0, mb=50.0)
ALL = [ROUGH, NOISY, BEST]
FULL_SOFTMAX = Cost(40.0, 400.0)


def recommended(budget, entries=ALL, steps=100):
    return recommend(entries, "trained", steps, budget, FULL_SOFTMAX)


def names(entries, steps):
    return [entry.name for entry in ranked(entries, "trained", steps)]


def test_error_after_averages_variance_but_not_bias():
    noisy = NOISY.statistics["trained"]["all"]
    assert noisy.error_after(1) == pytest.approx(0.5)
    assert noisy.error_after(100) == pytest.approx(0.05)
    biased = ROUGH.statistics["trained"]["all"]
    assert biased.error_after(10**9) == pytest.approx(0.3, rel=1e-6)
    expected = math.sqrt(0.01**2 + (0.1**2 - 0.01**2) / 100)
    assert BEST.statistics["trained"]["all"].error_after(100) == pytest.approx(expected)


def test_error_after_of_a_negative_bias_is_variance_only():
    assert entry("x", -0.2, 0.1, 1.0).statistics["trained"]["all"].error_after(100) == 0.01


def test_ranked_for_one_step_is_by_rmse_and_for_many_by_bias():
    assert names(ALL, steps=1) == ["best", "rough", "noisy"]
    assert names(ALL, steps=100) == ["best", "noisy", "rough"]


def test_ranked_ties_are_broken_by_bias_then_cost():
    tied = [
        entry("biased", 0.02, 0.2, 1.0),
        entry("slow", 0.0, 0.281, 2.0),
        entry("quick", 0.0, 0.2814, 1.0),
    ]
    assert names(tied, steps=100) == ["quick", "slow", "biased"]


def test_recommend_returns_the_best_within_the_budget():
    one, sentence = recommended(CostBudget(ms=10, mb=100))
    assert one is BEST
    assert sentence.startswith("for 10 ms and 100 MB per step, choose best, refined, n = 256")
    assert recommended(CostBudget(ms=2))[0] is NOISY
    assert recommended(CostBudget(ms=10, mb=10))[0] is NOISY
    assert recommended(CostBudget(ms=0.5))[0] is ROUGH


def test_recommend_returns_the_full_softmax_within_the_budget():
    one, sentence = recommended(CostBudget(ms=50))
    assert one is None
    assert sentence == (
        "for 50 ms per step, choose the full softmax, which is exact, at 40 ms and 4e+02 MB per "
        "step"
    )
    # Its memory exceeds this budget.
    assert recommended(CostBudget(ms=50, mb=100))[0] is BEST


def test_recommend_with_a_too_small_budget_names_the_fastest():
    one, sentence = recommended(CostBudget(ms=0.01))
    assert one is None
    assert "no measured estimator is within 0.01 ms per step" in sentence
    assert "the fastest is rough" in sentence


def test_recommend_without_a_budget_names_both():
    one, sentence = recommended(CostBudget())
    assert one is BEST
    assert "choose the full softmax" in sentence
    assert "the best sampled loss is best" in sentence


@pytest.mark.parametrize("budget", [{"ms": 0.0}, {"mb": -1.0}, {"ms": math.inf}])
def test_cost_budget_that_is_not_positive_is_refused(budget):
    with pytest.raises(ConfigError, match=r"--budget-m[sb] .* must be a positive number"):
        CostBudget(**budget)
