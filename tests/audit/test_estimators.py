import pytest

from candid.audit import ALL, REFINED, Variant, affordable, standard_plans
from candid.errors import ConfigError
from candid.samplers import SAMPLERS


def test_the_standard_set_has_every_family_that_needs_no_state():
    plans = standard_plans([16], 1000)
    types = {
        name
        for name, part in SAMPLERS.items()
        for plan in plans
        if isinstance(plan.config, part.Config)
    }
    assert types == set(SAMPLERS) - {"memory"}
    assert {plan.n for plan in plans} == {16}


def test_a_head_is_compared_under_refined_alone():
    by_name = {plan.name: plan for plan in standard_plans([16], 1000)}
    assert by_name["popularity"].variants == ALL
    assert by_name["popular head + tail"].variants == REFINED
    assert Variant("logq") in by_name["in-batch"].variants


def test_a_set_is_not_jackknifed():
    by_name = {plan.name: plan for plan in standard_plans([16], 1000)}
    for name in ("popularity, distinct", "in-batch, distinct"):
        assert [v.label for v in by_name[name].variants] == ["none", "logq", "refined"]


def test_what_does_not_fit_into_the_catalog_may_be_left_out():
    names = {plan.name for plan in standard_plans([32], 30, only_fitting=True)}
    assert {"popularity", "popular head + tail"} < names  # a head of 16
    assert not any("distinct" in name for name in names)
    assert not any("head" in p.name for p in standard_plans([64], 30, only_fitting=True))


def test_draws_by_the_model_are_left_out_of_a_large_catalog_and_named():
    plans = standard_plans([16, 64], 10**6)
    kept, sentence = affordable(plans, 10**6)
    assert {plan.name for plan in plans} - {plan.name for plan in kept} == {
        "random Fourier",
        "quadratic",
    }
    assert sentence.startswith("not measured: random Fourier and quadratic samplers")
    assert "1,000,000 items" in sentence
    assert affordable(plans, 1000) == (plans, None)
    assert affordable(kept, 10**6) == (kept, None)


def test_an_odd_number_is_shared_without_loss():
    (plan,) = [p for p in standard_plans([17], 1000) if p.name == "popular head + tail"]
    assert plan.config.num_exact + plan.config.rest.num_candidates == 17


def test_labels():
    assert Variant().label == "refined"
    assert Variant("logq", jackknife=True).label == "logq + jackknife"


@pytest.mark.parametrize(
    ("n", "sentence"),
    [
        (1, "--n 1: an estimate needs at least 2 candidates"),
        (31, "--n 31: a set of distinct items cannot be larger than the catalog of 30"),
    ],
)
def test_a_number_that_cannot_work_is_refused(n, sentence):
    with pytest.raises(ConfigError, match=sentence):
        standard_plans([16, n], 30)
