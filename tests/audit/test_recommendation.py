import math

import pytest

from candid.audit import Budget, Cost, Entry, Finding, Variant
from candid.audit.recommendation import ranked, recommend
from candid.errors import ConfigError


def entry(name, bias, rmse, ms, mb=1.0):
    found = Finding(bias, 0.001, rmse, 0.0, 0.0, 10.0, 64, 100.0)
    return Entry(name, 256, Variant(), {}, False, 256, {"trained": {"all": found}}, Cost(ms, mb))


ROUGH = entry("rough", 0.3, 0.31, 0.1)
NOISY = entry("noisy", 0.0, 0.5, 1.0)
BEST = entry("best", 0.01, 0.1, 4.0, mb=50.0)
ALL = [ROUGH, NOISY, BEST]
EXACT = Cost(40.0, 400.0)


def chosen(budget, entries=ALL, steps=100):
    return recommend(entries, "trained", steps, budget, EXACT)


def names(entries, steps):
    return [one.name for one in ranked(entries, "trained", steps)]


def test_bias_stays_and_noise_averages_out():
    found = NOISY.findings["trained"]["all"]
    assert found.error_after(1) == pytest.approx(0.5)
    assert found.error_after(100) == pytest.approx(0.05)
    biased = ROUGH.findings["trained"]["all"]
    assert biased.error_after(10**9) == pytest.approx(0.3, rel=1e-6)
    expected = math.sqrt(0.01**2 + (0.1**2 - 0.01**2) / 100)
    assert BEST.findings["trained"]["all"].error_after(100) == pytest.approx(expected)


def test_a_bias_below_zero_is_none():
    assert entry("x", -0.2, 0.1, 1.0).findings["trained"]["all"].error_after(100) == 0.01


def test_the_ranking_of_one_draw_is_by_rmse_and_of_many_steps_by_bias():
    assert names(ALL, steps=1) == ["best", "rough", "noisy"]
    assert names(ALL, steps=100) == ["best", "noisy", "rough"]


def test_ties_fall_to_the_smaller_bias_then_to_the_cheaper_step():
    tied = [
        entry("biased", 0.02, 0.2, 1.0),
        entry("slow", 0.0, 0.281, 2.0),
        entry("quick", 0.0, 0.2814, 1.0),
    ]
    assert names(tied, steps=100) == ["quick", "slow", "biased"]


def test_the_best_within_the_budget_is_chosen():
    one, sentence = chosen(Budget(ms=10, mb=100))
    assert one is BEST
    assert sentence.startswith("for 10 ms and 100 MB a step choose best, refined, n = 256")
    assert chosen(Budget(ms=2))[0] is NOISY
    assert chosen(Budget(ms=10, mb=10))[0] is NOISY
    assert chosen(Budget(ms=0.5))[0] is ROUGH


def test_the_full_softmax_is_chosen_where_it_fits():
    one, sentence = chosen(Budget(ms=50))
    assert one is None
    assert (
        sentence == "for 50 ms a step choose the full softmax: exact at 40 ms and 4e+02 MB a step"
    )
    # Not where only its time fits.
    assert chosen(Budget(ms=50, mb=100))[0] is BEST


def test_nothing_fits():
    one, sentence = chosen(Budget(ms=0.01))
    assert one is None
    assert "nothing that was measured fits into 0.01 ms a step" in sentence
    assert "the quickest is rough" in sentence


def test_without_a_budget_both_are_named():
    one, sentence = chosen(Budget())
    assert one is BEST
    assert "the full softmax is the choice" in sentence
    assert "choose best" in sentence


@pytest.mark.parametrize("budget", [{"ms": 0.0}, {"mb": -1.0}, {"ms": math.inf}])
def test_a_budget_is_positive(budget):
    with pytest.raises(ConfigError, match=r"--budget-m[sb] .* must be a positive number"):
        Budget(**budget)
