import pytest

from candid.audit import ALL, REFINED, Variant, standard_plans
from candid.errors import ConfigError
from candid.proposals import PROPOSALS


def test_the_standard_set_has_every_family_that_needs_no_state():
    plans = standard_plans([16], 1000)
    types = {
        name
        for name, part in PROPOSALS.items()
        for plan in plans
        if isinstance(plan.config, part.Config)
    }
    assert types == set(PROPOSALS) - {"memory"}
    assert {plan.n for plan in plans} == {16}


def test_a_head_is_compared_under_refined_alone():
    by_name = {plan.name: plan for plan in standard_plans([16], 1000)}
    assert by_name["popularity"].variants == ALL
    assert by_name["popular head + tail"].variants == REFINED
    assert Variant("logq") in by_name["in-batch"].variants


def test_an_odd_number_is_shared_without_loss():
    (plan,) = [p for p in standard_plans([17], 1000) if p.name == "popular head + tail"]
    assert plan.config.num_head + plan.config.tail.num_candidates == 17


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
