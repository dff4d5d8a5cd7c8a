"""The page on the bias of every estimator against the results of the audit."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks" / "audit.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = json.loads((RESULTS / "audit.json").read_text())
RESULTS_BY_KEY = {
    (one["items"], one["name"], one["correction"], one["n"]): one for one in DOCUMENT["results"]
}
EXACT_SHARES = {(one["items"], one["regime"], one["size"]): one for one in DOCUMENT["exact_shares"]}
SMALL, LARGE = 1_000, 100_000
SHARED, PER_ROW = "exact nearest, shared", "exact nearest, per row"


def times_smaller(num_items, regime, name, correction, n):
    """Return a lower bound of the bias quotient and the RMSE quotient to refined popularity."""
    base = RESULTS_BY_KEY[num_items, "popularity", "refined", n][regime]
    other = RESULTS_BY_KEY[num_items, name, correction, n][regime]
    least = base["bias"] - 2 * base["bias_error"]
    most = max(other["bias"], 0.0) + 2 * other["bias_error"]
    return least / most, base["rmse"] / other["rmse"]


def test_tables_match_results(benchmark_script):
    assert benchmark_script("audit").with_tables(DOCS, DOCUMENT) == DOCS


def test_results_contain_every_estimator_of_the_standard_set(benchmark_script):
    script = benchmark_script("audit")
    assert set(RESULTS_BY_KEY) == {
        (num_items, case.name, estimator.label, case.num_candidates)
        for num_items in script.SIZES
        for case in script.audit_cases(num_items)
        for estimator in case.estimators
    }


@pytest.mark.parametrize("regime", ["mid", "late"])
def test_exact_nearest_reduces_bias_and_rmse_in_a_small_catalog(regime):
    bias, rmse = times_smaller(SMALL, regime, PER_ROW, "refined", 256)
    assert bias > 10
    assert rmse > 3
    bias, rmse = times_smaller(SMALL, regime, SHARED, "refined", 256)
    assert bias > 5
    assert rmse > 2


@pytest.mark.parametrize("regime", ["mid", "late"])
def test_exact_nearest_needs_a_large_exact_part_in_a_large_catalog(regime):
    for name in (SHARED, PER_ROW):
        base = RESULTS_BY_KEY[LARGE, "popularity", "refined", 256][regime]
        other = RESULTS_BY_KEY[LARGE, name, "refined", 256][regime]
        assert base["bias"] / other["bias"] < 3.2
        assert times_smaller(LARGE, regime, name, "refined", 256)[1] < 1.25
        assert times_smaller(LARGE, regime, name, "refined", 4096)[1] > 2
    bias, rmse = times_smaller(LARGE, regime, PER_ROW, "refined + jackknife", 256)
    assert bias > {"mid": 10, "late": 4}[regime]
    assert 1 < rmse < 1.1


def test_variance_in_the_exact_part_predicts_the_rmse():
    # Half of the samples remain for the variance outside the exact part.
    for n, size in ((256, 128), (1024, 512), (4096, 2048)):
        remaining = 1 - EXACT_SHARES[LARGE, "mid", size]["noise_nearest"]
        rmse = times_smaller(LARGE, "mid", PER_ROW, "refined", n)[1]
        assert rmse == pytest.approx((2 * remaining) ** -0.5, rel=0.1)
    assert EXACT_SHARES[LARGE, "mid", 128]["noise_best"] < 1 - 0.5 / 1.5**2


@pytest.mark.parametrize("num_items", [SMALL, LARGE])
def test_exact_share_above_half_increases_the_rmse(num_items):
    for regime in ("mid", "late"):
        for half, larger in (
            (SHARED, "exact nearest 7/8, shared"),
            (PER_ROW, "exact nearest 7/8, per row"),
        ):
            at_half = RESULTS_BY_KEY[num_items, half, "refined", 256][regime]["rmse"]
            assert RESULTS_BY_KEY[num_items, larger, "refined", 256][regime]["rmse"] > 1.1 * at_half


@pytest.mark.parametrize("num_items", [SMALL, LARGE])
@pytest.mark.parametrize("n", [64, 256])
def test_jackknife_halves_the_bias_of_a_confident_model(num_items, n):
    bias, rmse = times_smaller(num_items, "late", "popularity", "refined + jackknife", n)
    assert bias > 2
    assert rmse > 0.88


@pytest.mark.parametrize("num_items", [SMALL, LARGE])
@pytest.mark.parametrize("regime", ["mid", "late"])
def test_distinct_sets_reduce_the_rmse_except_with_the_jackknife(num_items, regime):
    for n, least in ((64, 1.02), (256, 1.07)):
        rmse = times_smaller(num_items, regime, "popularity, distinct", "refined", n)[1]
        assert rmse > least
    floors = [
        RESULTS_BY_KEY[num_items, "popularity, distinct", "refined + jackknife", n][regime]["bias"]
        for n in (64, 256)
    ]
    assert min(floors) > 0.02
    assert floors[1] > 0.9 * floors[0]


def test_audit_of_a_million_items_matches_results():
    million = json.loads((RESULTS / "audit_million.json").read_text())
    stated = (
        f"{million['samplers']} samplers at n = 64 and 256 for {million['users']} users took "
        f"{million['minutes']:g} minutes"
    )
    assert stated in " ".join(DOCS.split())
    assert f"{million['gigabytes']:g} GB" in DOCS
    assert million["largest_bias_error"] <= 0.01
