"""The page on training with every estimator against its results."""

import json
from pathlib import Path
from statistics import fmean, stdev

import pytest

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks" / "estimators.md").read_text()
DOCUMENT = json.loads((ROOT / "benchmarks" / "results" / "every_estimator.json").read_text())
RESULTS = DOCUMENT["results"]


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("every_estimator")


def runs(data, *, sampler=None, correction=None):
    """The runs on a dataset with these labels."""
    return [
        one
        for one in RESULTS
        if one["data"] == data
        and sampler in (None, one["sampler"])
        and correction in (None, one["correction"])
    ]


def mean(found, metric):
    return fmean(one[metric] for one in found)


def test_tables_match_results(script):
    assert script.with_tables(DOCS, DOCUMENT) == DOCS


def test_results_contain_every_combination_and_seed_with_the_script_settings(script):
    keys = [(one["data"], one["sampler"], one["correction"], one["seed"]) for one in RESULTS]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {
        (data, one.sampler, one.correction, seed)
        for data in script.STEPS
        for one in script.combinations(3000)
        for seed in script.SEEDS
    }
    settings = DOCUMENT["settings"]
    assert settings["training"] == script.TRAINING
    assert settings["training"]["precision"] == "bfloat16"
    assert (settings["steps"], settings["batches"]) == (script.STEPS, script.BATCHES)
    assert settings["seeds"] == list(script.SEEDS)
    assert len(script.SEEDS) == 3


def test_combinations_are_those_of_the_page(script):
    combinations = {(one.sampler, one.correction): one for one in script.combinations(3000)}
    popularity = [key[1] for key in combinations if key[0] == "popularity"]
    assert popularity == [
        "none",
        "logq",
        "logq, hits masked",
        "refined",
        "published_code",
        "refined + jackknife",
        "learnt partition",
    ]
    for sampler in ("in-batch", "popularity + uniform"):
        assert {key[1] for key in combinations if key[0] == sampler} == {"refined", "logq"}


def test_trainings_stay_finite_and_do_not_diverge():
    assert len(RESULTS) == 132
    for one in RESULTS:
        assert "failed" not in one
        assert one["all_finite"]
        assert one["logged_steps"] == DOCUMENT["settings"]["steps"][one["data"]] // 10
        assert one["last_losses"] < one["first_losses"]
    worse = {}
    for one in RESULTS:
        loss = one["last_validation_nll"] - one["best_validation_nll"]
        if loss > 0.03:
            worse.setdefault((one["data"], one["sampler"]), []).append(round(loss, 2))
    assert {key: (min(losses), max(losses)) for key, losses in worse.items()} == {
        ("synthetic", "uniform"): (0.04, 0.14),
        ("synthetic", "quadratic"): (0.16, 0.21),
    }


def test_corrected_losses_beat_item_popularity():
    alone = DOCUMENT["data"]["ml1m"]["popularity"]
    for one in runs("ml1m"):
        if one["correction"] != "none":
            assert one["test_nll"] < alone["nll"] - 0.45
            assert one["test_ndcg@10"] > 2.5 * alone["ndcg@10"]
    data = DOCUMENT["data"]["synthetic"]
    for one in runs("synthetic"):
        if one["correction"] != "none":
            assert one["test_nll"] < data["log_num_items"] - 0.6
            assert one["test_ndcg@10"] > data["popularity"]["ndcg@10"] + 0.03
            is_behind = one["sampler"] in ("uniform", "quadratic")
            assert is_behind == (one["test_nll"] > data["popularity"]["nll"] - 0.25)


def test_uncorrected_loss_is_the_worst_with_popularity_samples():
    for data in ("ml1m", "synthetic"):
        of_none = runs(data, correction="none")
        others = [one for one in runs(data, sampler="popularity") if one not in of_none]
        assert mean(of_none, "test_nll") > max(one["test_nll"] for one in others)
        assert mean(of_none, "test_ndcg@10") < min(one["test_ndcg@10"] for one in others)
    alone = DOCUMENT["data"]["synthetic"]["popularity"]["ndcg@10"]
    assert all(one["test_ndcg@10"] < alone for one in runs("synthetic", correction="none"))


def test_corrections_of_popularity_samples_differ_by_less_than_the_seeds():
    for data, most in (("ml1m", 0.1), ("synthetic", 0.01)):
        corrected = [
            mean(runs(data, sampler="popularity", correction=correction), "test_nll")
            for correction in (
                "logq",
                "logq, hits masked",
                "refined",
                "published_code",
                "refined + jackknife",
                "learnt partition",
            )
        ]
        assert max(corrected) - min(corrected) < most


def test_in_batch_candidates_are_ahead_of_popularity_samples():
    for data in ("ml1m", "synthetic"):
        for correction in ("refined", "logq"):
            popularity, in_batch = (
                mean(runs(data, sampler=sampler, correction=correction), "test_nll")
                for sampler in ("popularity", "in-batch")
            )
            assert 0.045 < popularity - in_batch < 0.085


def test_exact_candidates_gain_nothing_beyond_the_spread_of_the_seeds():
    for sampler in ("exact popular", "exact nearest, shared", "exact nearest, per row"):
        of_popularity, of_exact = (
            [one["test_nll"] for one in runs("ml1m", sampler=name, correction="refined")]
            for name in ("popularity", sampler)
        )
        behind = fmean(of_exact) - fmean(of_popularity)
        assert 0 < behind < stdev(of_popularity) + stdev(of_exact)


def test_loss_noise_of_one_shared_sample_matches_the_page():
    noisy = DOCUMENT["one_sample"]
    assert all(0.2 < deviation < 0.3 for deviation in noisy["deviation_by_100_steps"])
    means = noisy["mean_by_100_steps"]
    assert means == sorted(means, reverse=True)
    assert [round(means[0], 2), round(means[-1], 2)] == [7.97, 7.8]
    assert noisy["validation_nll"] == sorted(noisy["validation_nll"], reverse=True)
