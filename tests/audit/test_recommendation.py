import math

import pytest
import torch

from candid.audit import (
    AuditEntry,
    Cost,
    CostBudget,
    Drift,
    Estimator,
    EstimatorStatistics,
    InputMeasurement,
    ProposalDistance,
    expected_excess,
)
from candid.audit.recommendation import candidates_needed, ranked, recommend
from candid.errors import ConfigError


def entry(name, drift, rmse, ms, mb=1.0, *, error=0.0005, n=256, **settings):
    statistics = EstimatorStatistics(0.1, 0.001, rmse, 0.0, 0.0, 10.0, 64, 100.0)
    by_user = torch.full((4,), drift, dtype=torch.float64)
    ones = torch.ones(4, dtype=torch.float64)
    measurement = InputMeasurement(
        drift=Drift(by_user=by_user, by_user_error=ones, block_error=error),
        distance=ProposalDistance(chi2=7.0 * ones, kl=ones),
        slices={"all": statistics},
    )
    values = {
        "name": name,
        "num_candidates": n,
        "estimator": Estimator("refined"),
        "sampler": {"type": name},
        "distinct": False,
        "is_recipe": False,
        "num_scores": 256,
        "inputs": {"trained": measurement},
        "cost": Cost(ms, mb),
    }
    return AuditEntry(**(values | settings))


DRIFTING = entry("drifting", 0.3, 0.1, 0.1)
NOISY = entry("noisy", 0.0, 0.9, 1.0)
BEST = entry("best", 0.002, 0.2, 4.0, mb=50.0)
ALL = [DRIFTING, NOISY, BEST]
FULL_SOFTMAX = Cost(40.0, 400.0)


def recommended(budget, entries=ALL, noise=0.1):
    return recommend(entries, "trained", noise, budget, FULL_SOFTMAX)


def names(entries, noise=0.1):
    return [entry.name for entry in ranked(entries, "trained", noise)]


def test_expected_excess_adds_the_price_of_the_variance():
    measurement = entry("x", 0.03, 0.5, 1.0).inputs["trained"]
    assert expected_excess(measurement, 0.1) == pytest.approx(0.03 + 0.1 * 0.25)
    assert expected_excess(measurement, 0.0) == pytest.approx(0.03)
    # Below 0 means not different from 0.
    negative = entry("x", -0.03, 0.5, 1.0).inputs["trained"]
    assert expected_excess(negative, 0.1) == pytest.approx(0.1 * 0.25)


def test_ranked_weighs_drift_and_variance():
    assert names(ALL) == ["best", "noisy", "drifting"]
    # With little data the variance of one candidate costs more than a drift.
    assert names(ALL, noise=1.0) == ["best", "drifting", "noisy"]


def test_ranked_prefers_many_candidates_where_no_estimator_drifts():
    entries = [entry(f"{n}", 0.0, n**-0.5, 1.0, n=n) for n in (1, 16, 256)]
    assert names(entries) == ["256", "16", "1"]


def test_ranked_differences_within_the_standard_errors_are_ties():
    lucky = entry("lucky", 0.001, 0.30, 1.0, error=0.01)
    unlucky = entry("unlucky", 0.009, 0.20, 1.0, error=0.01)
    assert names([lucky, unlucky]) == ["unlucky", "lucky"]
    known = [
        entry(one.name, one.inputs["trained"].drift.mean, 0.2, 1.0) for one in (lucky, unlucky)
    ]
    assert names(known) == ["lucky", "unlucky"]


def test_ranked_ties_of_the_variance_are_broken_by_cost():
    tied = [entry("slow", 0.0, 0.2, 2.0), entry("quick", 0.0005, 0.2004, 1.0)]
    assert names(tied) == ["quick", "slow"]


def test_recommend_returns_the_best_within_the_budget():
    one, sentence = recommended(CostBudget(ms=10, mb=100))
    assert one is BEST
    assert sentence == (
        "for 10 ms and 100 MB per step, choose best, refined, n = 256: a drift of 0.002 ± 0.001 "
        "nats, RMSE of one step 0.2, expected excess 0.006 nats, at 4 ms and 50 MB per step"
    )
    assert recommended(CostBudget(ms=2))[0] is NOISY
    assert recommended(CostBudget(ms=10, mb=10))[0] is NOISY
    assert recommended(CostBudget(ms=0.5))[0] is DRIFTING


def test_recommend_names_the_number_of_candidates_that_a_small_drift_needs():
    one, sentence = recommended(CostBudget(ms=0.5))
    assert one is DRIFTING
    assert "a drift of 0.300 ± 0.001 nats (chi2 of the sampler is 7; refined has" in sentence
    sizes = [entry("refined", drift, 0.5, 1.0, n=n) for n, drift in ((16, 0.2), (64, 0.05))]
    assert "(below 0.01 nats from about n = 300)" in recommended(CostBudget(ms=2), sizes)[1]
    assert candidates_needed(sizes[0], sizes, "trained") == 300
    measured = [*sizes, entry("refined", 0.001, 0.5, 1.0, n=128)]
    assert candidates_needed(measured[0], measured, "trained") == 128
    floor = [entry("refined", drift, 0.5, 1.0, n=n) for n, drift in ((16, 0.2), (64, 0.19))]
    assert candidates_needed(floor[0], floor, "trained") is None
    others = [sizes[0], entry("refined", 0.001, 0.5, 1.0, n=64, estimator=Estimator("logq"))]
    assert candidates_needed(others[0], others, "trained") is None


def test_recommend_states_the_drift_of_the_recipe():
    own = entry("recipe", 0.2, 0.3, 1.0, is_recipe=True)
    sentence = recommended(CostBudget(ms=10), [BEST, own])[1]
    assert (
        "; the estimator of the recipe, recipe, refined, n = 256, has a drift of 0.200" in sentence
    )


def test_recommend_never_chooses_a_correction_for_comparison_only():
    baseline = entry("published", 0.0, 0.01, 0.1, estimator=Estimator("published_code"))
    assert recommended(CostBudget(ms=10), [baseline, NOISY])[0] is NOISY
    assert names([baseline, NOISY]) == ["published", "noisy"]


def test_recommend_returns_the_full_softmax_within_the_budget():
    one, sentence = recommended(CostBudget(ms=50))
    assert one is None
    assert sentence == (
        "for 50 ms per step, choose the full softmax, which has no drift, at 40 ms and 4e+02 MB "
        "per step"
    )
    # Its memory exceeds this budget.
    assert recommended(CostBudget(ms=50, mb=100))[0] is BEST


def test_recommend_with_a_too_small_budget_names_the_fastest():
    one, sentence = recommended(CostBudget(ms=0.01))
    assert one is None
    assert "no measured estimator is within 0.01 ms per step" in sentence
    assert "the fastest is drifting" in sentence


def test_recommend_without_a_budget_names_both():
    one, sentence = recommended(CostBudget())
    assert one is BEST
    assert "choose the full softmax" in sentence
    assert "the best sampled loss is best" in sentence


@pytest.mark.parametrize("budget", [{"ms": 0.0}, {"mb": -1.0}, {"ms": math.inf}])
def test_cost_budget_that_is_not_positive_is_refused(budget):
    with pytest.raises(ConfigError, match=r"--budget-m[sb] .* must be a positive number"):
        CostBudget(**budget)
