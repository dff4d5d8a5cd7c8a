import pytest

from candid.audit import (
    ALL_ESTIMATORS,
    Estimator,
    affordable_cases,
    estimators_for,
    sampler_config,
    standard_cases,
)
from candid.component import type_name
from candid.errors import ConfigError
from candid.samplers import SAMPLERS


def cases_by_name(size=16, num_items=1000):
    return {case.name: case for case in standard_cases([size], num_items)}


def test_standard_cases_have_every_sampler_without_state():
    cases = standard_cases([16], 1000)
    types = {type_name(SAMPLERS, "sampler", case.sampler) for case in cases}
    assert types == {
        "uniform",
        "popularity",
        "in_batch",
        "random_fourier",
        "quadratic",
        "exact_popular",
        "exact_nearest",
        "mixture",
    }
    assert {case.num_candidates for case in cases} == {16}


def test_standard_cases_have_the_estimators_of_their_sampler():
    by_name = cases_by_name()
    assert by_name["popularity"].estimators == ALL_ESTIMATORS
    assert by_name["exact popular"].estimators == (
        Estimator("logq"),
        Estimator("logq", accidental_hits="mask"),
        Estimator("refined"),
        Estimator("refined", jackknife=True),
        Estimator(cap=3.0),
    )
    assert Estimator("logq") in by_name["in-batch"].estimators
    for name in ("popularity, distinct", "in-batch, distinct"):
        labels = [estimator.label for estimator in by_name[name].estimators]
        assert labels == ["none", "logq", "refined", "learnt partition, cap 3"]


def test_standard_cases_with_only_fitting_leave_out_too_large_ones():
    names = {case.name for case in standard_cases([32], 30, only_fitting=True)}
    assert {"popularity", "exact popular"} < names  # 16 exact candidates
    assert not any("distinct" in name for name in names)
    assert not any("exact" in case.name for case in standard_cases([64], 30, only_fitting=True))


def test_affordable_cases_of_a_large_catalog_leave_out_samples_per_row():
    cases = standard_cases([16, 64], 10**6)
    affordable, sentence = affordable_cases(cases, 10**6)
    assert {case.name for case in cases} - {case.name for case in affordable} == {
        "random Fourier",
        "quadratic",
    }
    assert sentence.startswith("not measured: the random Fourier and quadratic samplers")
    assert "1,000,000 items" in sentence
    assert affordable_cases(cases, 1000) == (cases, None)
    assert affordable_cases(affordable, 10**6) == (affordable, None)


def test_standard_cases_divide_an_odd_number_completely():
    case = cases_by_name(size=17)["exact popular"]
    assert case.sampler.num_exact + case.sampler.rest.num_candidates == 17
    assert case.sampler.candidates_per_row(64) == 17


def test_standard_cases_have_one_in_batch_size_where_batches_are_given():
    cases = standard_cases([16, 64], 1000, rows_per_batch=500)
    sizes = {(case.name, case.num_candidates) for case in cases}
    assert {size for name, size in sizes if name.startswith("in-batch")} == {500}
    assert {size for name, size in sizes if not name.startswith("in-batch")} == {16, 64}
    assert len(cases) == len(sizes)


@pytest.mark.parametrize(
    ("n", "sentence"),
    [
        (1, "--n 1: an estimate needs at least 2 candidates"),
        (31, "--n 31: a set of distinct items cannot be larger than the catalog of 30"),
    ],
)
def test_standard_cases_of_an_impossible_number_are_refused(n, sentence):
    with pytest.raises(ConfigError, match=sentence):
        standard_cases([16, n], 30)


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
        "learnt partition, cap 3",
    ]
    assert len(ALL_ESTIMATORS) == 7


def test_estimators_beside_exact_candidates_are_corrected():
    rest = {"type": "uniform", "num_candidates": 4}
    table = {"type": "exact_popular", "num_exact": 2, "rest": rest}
    expected = ["logq", "logq, hits masked", "refined", "refined + jackknife"]
    expected.append("learnt partition, cap 3")
    assert labels(table) == expected


def test_estimators_for_a_set_have_no_jackknife_and_one_rule_of_hits():
    table = {"type": "in_batch", "distinct": True}
    assert labels(table) == ["none", "logq", "refined", "learnt partition, cap 3"]
    mixture = {"type": "mixture", "components": [table, {"type": "uniform"}]}
    assert labels(mixture) == ["none", "logq", "refined", "learnt partition, cap 3"]
