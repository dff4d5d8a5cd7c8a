"""The page on the drift of every estimator against the results of the audit."""

import json
import math
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks" / "audit.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = json.loads((RESULTS / "audit.json").read_text())
ROWS = DOCUMENT["results"]
SMALL, LARGE = 1_000, 100_000
CATALOGS = (SMALL, LARGE)
REGIMES = ("init", "mid", "late")


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("audit")


def seeds(num_items, name, correction, n, regime):
    """The numbers of each seed of one estimator."""
    return [
        one[regime]
        for one in ROWS
        if (one["items"], one["name"], one["correction"], one["n"])
        == (num_items, name, correction, n)
    ]


def mean(num_items, name, correction, n, regime, key="drift"):
    return fmean(one[key] for one in seeds(num_items, name, correction, n, regime))


def error(num_items, name, correction, n, regime):
    """Standard error of the mean drift over the seeds."""
    errors = [one["drift_error"] for one in seeds(num_items, name, correction, n, regime)]
    return math.hypot(*errors) / len(errors)


def test_tables_match_results(script):
    assert script.with_tables(DOCS, DOCUMENT) == DOCS


def test_results_contain_every_estimator_and_seed_of_the_standard_set(script):
    keys = [(one["items"], one["name"], one["correction"], one["n"], one["seed"]) for one in ROWS]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {
        (num_items, case.name, estimator.label, case.num_candidates, seed)
        for num_items in script.SIZES
        for case, seed in script.units(num_items)
        for estimator in case.estimators
    }
    assert DOCUMENT["settings"]["seeds"] == list(script.SEEDS)
    assert len(script.SEEDS) == 3


@pytest.mark.parametrize("num_items", CATALOGS)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n", [16, 64, 256])
def test_drift_of_logq_with_popularity_samples_is_zero(num_items, regime, n):
    key = (num_items, "popularity", "logq", n, regime)
    assert abs(mean(*key)) < 4 * error(*key)
    # The error is small enough to see a drift such as that of refined.
    assert error(*key) < 0.02


@pytest.mark.parametrize("num_items", CATALOGS)
@pytest.mark.parametrize("n", [16, 64, 256])
def test_learnt_partition_function_has_no_drift_and_more_noise_than_logq(num_items, n):
    name = "learnt partition, cap 3"
    for regime in REGIMES:
        key = (num_items, "popularity", name, n, regime)
        assert abs(mean(*key)) < 4 * error(*key)
    of_logq = mean(num_items, "popularity", "logq", n, "late", "rmse")
    assert mean(num_items, "popularity", name, n, "late", "rmse") > 1.3 * of_logq


@pytest.mark.parametrize("num_items", CATALOGS)
@pytest.mark.parametrize("regime", REGIMES)
def test_drift_of_refined_falls_with_the_number_of_candidates(num_items, regime):
    at = [mean(num_items, "popularity", "refined", n, regime) for n in (16, 64, 256)]
    assert at[0] > at[1] > at[2]
    assert at[0] > 4 * error(num_items, "popularity", "refined", 16, regime)


@pytest.mark.parametrize("num_items", CATALOGS)
def test_drift_of_refined_needs_n_far_above_chi2(num_items):
    unsure, confident = (
        [mean(num_items, "popularity", "refined", n, regime) for n in (16, 64, 256)]
        for regime in ("mid", "late")
    )
    assert 5 <= round(mean(num_items, "popularity", "refined", 64, "mid", "chi2")) <= 7
    assert unsure[1] < 0.01
    assert 0.03 <= round(confident[2], 2) <= 0.06
    for regime in REGIMES:
        assert 0.03 < mean(num_items, "popularity", "refined", 16, regime) < 0.2


def test_chi2_of_the_confident_models_matches_the_page():
    chi2 = [round(mean(n, "popularity", "refined", 16, "late", "chi2"), -1) for n in CATALOGS]
    assert chi2 == [70, 860]


@pytest.mark.parametrize("num_items", CATALOGS)
def test_jackknife_removes_less_drift_where_the_model_is_confident(num_items):
    def removed(regime, n):
        plain, jackknife = (
            mean(num_items, "popularity", correction, n, regime)
            for correction in ("refined", "refined + jackknife")
        )
        return 1 - jackknife / plain

    assert all(removed(regime, 16) > 0.5 for regime in ("init", "mid"))
    assert all(1 / 8 < removed("late", n) < 0.4 for n in (16, 64, 256))
    for regime in REGIMES:
        for n, least, most in ((16, 1.15, 1.5), (256, 1.0, 1.13)):
            plain, jackknife = (
                mean(num_items, "popularity", correction, n, regime, "rmse")
                for correction in ("refined", "refined + jackknife")
            )
            assert least < jackknife / plain < most


@pytest.mark.parametrize("num_items", CATALOGS)
@pytest.mark.parametrize("regime", ["mid", "late"])
def test_masked_hits_of_logq_add_a_drift_that_grows_with_n(num_items, regime):
    at = [mean(num_items, "popularity", "logq, hits masked", n, regime) for n in (16, 64, 256)]
    assert at[0] < at[1] < at[2]
    assert 0.015 < at[2] < 0.07


@pytest.mark.parametrize("num_items", CATALOGS)
@pytest.mark.parametrize("regime", ["mid", "late"])
def test_drift_of_the_published_code_exceeds_that_of_refined(num_items, regime):
    for n in (16, 64, 256):
        of_code = mean(num_items, "popularity", "published_code", n, regime)
        assert of_code > mean(num_items, "popularity", "refined", n, regime)
        if regime == "late":
            assert 0.4 < of_code < 0.65


def test_drift_of_the_uncorrected_loss_is_large_everywhere():
    for one in ROWS:
        if (one["name"], one["correction"]) == ("popularity", "none"):
            assert all(one[regime]["drift"] > 0.6 for regime in REGIMES)


@pytest.mark.parametrize("num_items", CATALOGS)
def test_rmse_of_logq_for_the_confident_model_matches_the_page(num_items):
    for correction, least, most in (("logq", 0.55, 0.95), ("refined", 0.15, 0.6)):
        for n in (16, 64, 256):
            assert least < mean(num_items, "popularity", correction, n, "late", "rmse") < most


def test_exact_nearest_candidates_have_the_least_excess_for_the_confident_model(script):
    for num_items in CATALOGS:
        for n in (16, 64, 256):
            best, second, *_ = script.ranking(ROWS, num_items, "late", n)
            if (num_items, n) == (LARGE, 256):
                both = {"exact nearest, per row", "exact nearest, shared"}
                assert {best[1], second[1]} == both
                assert second[0] - best[0] < 0.0005
                continue
            assert best[1] == "exact nearest, per row"
            if n > 16:
                assert second[1] == "exact nearest, shared"
    for n in (16, 64, 256):
        assert script.ranking(ROWS, SMALL, "mid", n)[0][1] == "exact nearest, per row"


@pytest.mark.parametrize("num_items", CATALOGS)
def test_mixture_and_popularity_samples_are_level_but_before_training(script, num_items):
    for n in (16, 64, 256):
        excess = {
            regime: {
                name: mean(num_items, name, "logq", n, regime, "expected_excess")
                for name in ("popularity", "popularity + uniform")
            }
            for regime in REGIMES
        }
        for regime in ("mid", "late"):
            popular, mixture = excess[regime].values()
            assert abs(popular - mixture) < 0.008
        popular, mixture = excess["init"].values()
        assert mixture < 0.75 * popular


def test_jackknife_of_a_distinct_set_is_biased():
    name = "popularity, distinct"
    for key, digits in (("bias", (2, 1)), ("drift", (3, 3))):
        plain, jackknife = (
            mean(SMALL, name, correction, 256, "mid", key)
            for correction in ("refined", "refined + jackknife")
        )
        stated = {"bias": (0.01, 0.1), "drift": (0.001, 0.006)}[key]
        assert (round(plain, digits[0]), round(jackknife, digits[1])) == stated


def test_gradient_bias_does_not_order_the_corrections_by_drift():
    for num_items in CATALOGS:
        for regime in REGIMES:
            logq, refined = (
                mean(num_items, "popularity", correction, 16, regime, "bias")
                for correction in ("logq", "refined")
            )
            assert logq > 3 * refined


def test_audit_of_a_million_items_matches_results():
    million = json.loads((RESULTS / "audit_million.json").read_text())
    stated = (
        f"{million['samplers']} samplers at n = 64 for {million['users']} users took "
        f"{million['cpu_minutes']:g} minutes of one core and {million['gigabytes']:g} GB"
    )
    text = " ".join(DOCS.split())
    assert stated in text
    assert f"measured on {million['drift_users']} of the users" in text
    assert f"at most {million['largest_drift_error_of_logq']:.3f} nats" in text
    assert f"at most {million['largest_bias_error']:.3f}." in text
    assert million["largest_bias_error"] <= 0.01
