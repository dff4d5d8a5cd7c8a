from candid.audit import ALL_ESTIMATORS, Estimator, estimators_for, sampler_config


def labels(table):
    return [estimator.label for estimator in estimators_for(sampler_config(table))]


def test_estimators_for_independent_samples_are_all():
    assert labels({"type": "uniform", "num_candidates": 4}) == [
        "none",
        "logq",
        "logq, hits masked",
        "refined",
        "published_code",
        "refined + jackknife",
    ]
    assert len(ALL_ESTIMATORS) == 6


def test_estimators_beside_exact_candidates_are_corrected():
    rest = {"type": "uniform", "num_candidates": 4}
    table = {"type": "exact_popular", "num_exact": 2, "rest": rest}
    expected = ["logq", "logq, hits masked", "refined", "refined + jackknife"]
    assert labels(table) == expected


def test_estimators_for_a_set_have_no_jackknife_and_one_rule_of_hits():
    table = {"type": "in_batch", "distinct": True}
    assert labels(table) == ["none", "logq", "refined"]
    mixture = {"type": "mixture", "components": [table, {"type": "uniform"}]}
    assert labels(mixture) == ["none", "logq", "refined"]


def test_estimator_label():
    assert Estimator().label == "logq"
    assert Estimator("logq", jackknife=True).label == "logq + jackknife"
    assert Estimator("logq", accidental_hits="mask").label == "logq, hits masked"


def test_rule_of_accidental_hits_is_the_default_of_the_correction():
    assert Estimator("logq") == Estimator("logq", accidental_hits="keep")
    assert Estimator("logq") != Estimator("logq", accidental_hits="mask")
    assert Estimator().accidental_hits == "keep"
    assert Estimator("refined").accidental_hits == "mask"
