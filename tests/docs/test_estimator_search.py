"""The section on other estimators against the results of its search."""

import json
from pathlib import Path
from statistics import fmean, stdev

import pytest

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks" / "estimators.md").read_text()
DOCUMENT = json.loads((ROOT / "benchmarks" / "results" / "estimator_search.json").read_text())
LEARNT = "learnt partition function, cap 3"


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("estimator_search")


def seeds(name, chi2, n):
    (one,) = (
        one
        for one in DOCUMENT["tables"]
        if (one["estimator"], one["chi2"], one["n"]) == (name, chi2, n)
    )
    return min(one["excess_nll"].values(), key=fmean)


def test_tables_match_the_results(script):
    assert script.with_tables(DOCS, DOCUMENT) == DOCS


def test_results_contain_every_cell(script):
    measured = {(one["chi2"], one["estimator"], one["n"]) for one in DOCUMENT["tables"]}
    assert measured == set(script.tables.cells())
    trained = {(one["estimator"], one["split"]) for one in DOCUMENT["trained"]}
    assert {name for name, _ in trained} == {*script.runs.TRAINED, script.runs.FULL}


@pytest.mark.parametrize("n", [4, 16])
def test_learnt_partition_function_is_ahead_beyond_the_spread(n):
    learnt = seeds(LEARNT, 100, n)
    for other in ("refined", "logq"):
        values = seeds(other, 100, n)
        assert fmean(learnt) + 2 * (stdev(learnt) + stdev(values)) < fmean(values)
