import math

import pytest

from candid.errors import ConfigError
from candid.losses.estimator import Estimator


def test_estimator_label():
    assert Estimator().label == "logq"
    assert Estimator("logq", jackknife=True).label == "logq + jackknife"
    assert Estimator("logq", accidental_hits="mask").label == "logq, hits masked"
    assert Estimator(cap=0.5).label == "learnt partition, cap 0.5"


def test_rule_of_accidental_hits_is_the_default_of_the_correction():
    assert Estimator("logq") == Estimator("logq", accidental_hits="keep")
    assert Estimator("logq") != Estimator("logq", accidental_hits="mask")
    assert Estimator().accidental_hits == "keep"
    assert Estimator("refined").accidental_hits == "mask"


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"cap": 0.0}, "cap = 0 must be a positive number"),
        ({"cap": math.inf}, "cap = inf must be a positive number"),
        ({"cap": 3.0, "correction": "refined"}, "correction = 'logq'"),
        ({"cap": 3.0, "accidental_hits": "mask"}, "accidental_hits = 'keep'"),
        ({"cap": 3.0, "jackknife": True}, "no jackknife"),
    ],
)
def test_cap_needs_a_positive_number_and_the_correction_of_both(settings, part):
    with pytest.raises(ConfigError, match=part):
        Estimator(**settings)
