"""The page on training with every estimator against its results."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks" / "estimators.md").read_text()
DOCUMENT = json.loads((ROOT / "benchmarks" / "results" / "every_estimator.json").read_text())
RESULTS = DOCUMENT["results"]


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("every_estimator")


def refined(data):
    return [one for one in RESULTS if one["data"] == data and "refined" in one["correction"]]


def test_tables_match_results(script):
    assert script.with_tables(DOCS, DOCUMENT) == DOCS


def test_results_contain_every_combination_with_the_script_settings(script):
    assert {
        (one["data"], one["similarity"], one["sampler"], one["correction"]) for one in RESULTS
    } == {
        (data, similarity, sampler, estimator.label)
        for data in script.STEPS
        for similarity in script.SIMILARITIES
        for sampler, (_, estimators) in script.samplers(3000).items()
        for estimator in estimators
    }
    settings = DOCUMENT["settings"]
    assert settings["training"] == script.TRAINING
    assert settings["training"]["precision"] == "bfloat16"
    assert (settings["steps"], settings["batches"]) == (script.STEPS, script.BATCHES)


def test_trainings_stay_finite_and_do_not_diverge():
    assert len(RESULTS) == 68
    for one in RESULTS:
        assert "failed" not in one
        assert one["all_finite"]
        assert one["logged_steps"] == DOCUMENT["settings"]["steps"][one["data"]] // 10
        assert one["last_losses"] < one["first_losses"]
    drifts = {
        (one["data"], one["similarity"], one["sampler"]): drift
        for one in RESULTS
        if (drift := one["last_validation_nll"] - one["best_validation_nll"]) > 0.03
    }
    assert drifts == {
        ("synthetic", "dot", "uniform"): pytest.approx(0.07, abs=0.005),
        ("synthetic", "dot", "quadratic"): pytest.approx(0.17, abs=0.005),
    }


def test_refined_estimators_beat_item_popularity():
    alone = DOCUMENT["data"]["ml1m"]["popularity"]
    for one in refined("ml1m"):
        assert one["test_nll"] < alone["nll"] - 0.7
        assert one["test_ndcg@10"] > 4 * alone["ndcg@10"]
    alone = DOCUMENT["data"]["synthetic"]["popularity"]
    for one in refined("synthetic"):
        assert one["test_nll"] < DOCUMENT["data"]["synthetic"]["log_num_items"] - 0.7
        assert one["test_ndcg@10"] > alone["ndcg@10"] + 0.03
        is_behind = one["sampler"] in ("uniform", "quadratic")
        assert is_behind == (one["test_nll"] > alone["nll"] - 0.25)


def test_uncorrected_loss_has_the_worst_lists():
    for data in ("ml1m", "synthetic"):
        for similarity in ("dot", "cosine"):
            of_none, *others = sorted(
                (one for one in RESULTS if (one["data"], one["similarity"]) == (data, similarity)),
                key=lambda one: one["test_ndcg@10"],
            )
            assert of_none["correction"] == "none"
            if data == "synthetic":
                alone = DOCUMENT["data"]["synthetic"]["popularity"]["ndcg@10"]
                assert of_none["test_ndcg@10"] < alone < others[0]["test_ndcg@10"]


def test_loss_noise_of_one_shared_sample_matches_the_page():
    noisy = DOCUMENT["one_sample"]
    assert all(0.24 < deviation < 0.265 for deviation in noisy["deviation_by_100_steps"])
    means = noisy["mean_by_100_steps"]
    assert means == sorted(means, reverse=True)
    assert [round(means[0], 2), round(means[-1], 2)] == [7.95, 7.77]
    assert noisy["validation_nll"] == sorted(noisy["validation_nll"], reverse=True)
