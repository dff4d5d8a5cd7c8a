"""The section on drift against training, against its results."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks" / "estimators.md").read_text()
DOCUMENT = json.loads((ROOT / "benchmarks" / "results" / "drift_training.json").read_text())
CELLS = DOCUMENT["cells"]
KNOWN = json.loads((ROOT / "benchmarks" / "results" / "drift_known_truth.json").read_text())


@pytest.fixture(scope="module")
def figure(benchmark_script):
    return benchmark_script("drift_figure")


@pytest.fixture(scope="module")
def study(benchmark_script):
    return benchmark_script("drift_training")


def test_tables_match_results(figure):
    documents = {"drift_training": DOCUMENT, "drift_known_truth": KNOWN}
    assert figure.with_tables(DOCS, documents) == DOCS


def test_rank_correlation_with_ties_equals_scipy(figure):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 40).astype(float), rng.normal(size=40)
    assert figure.rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_results_contain_every_cell_with_the_script_settings(study):
    expected = {
        (cell.data, cell.label, cell.n)
        for data in study.EPOCHS
        for cell in study.cells(data)
        if cell.n
    }
    assert {(one["data"], one["label"], one["n"]) for one in CELLS} == expected
    settings = DOCUMENT["settings"]
    for name in ("training", "epochs", "batches", "synthetic"):
        assert settings[name] == getattr(study, name.upper())
    assert tuple(settings["rates"]) == study.RATES


def test_excess_is_the_mean_difference_over_the_same_seeds():
    for one in CELLS:
        assert len(one["seeds"]) == len(DOCUMENT["settings"]["seeds"]) == 3
        differences = [
            mine["test_nll"] - full
            for mine, full in zip(one["seeds"], one["full_softmax_test_nll"], strict=True)
        ]
        assert one["excess"] == pytest.approx(np.mean(differences))
        best = min(one["grid"], key=lambda rate: one["grid"][rate]["validation_nll"])
        assert one["lr"] == float(best)


def test_drift_ranks_the_excess_over_an_estimator_without_drift(figure):
    overall = figure.correlations(CELLS, over_kept=True)["all"]
    assert overall["cells"] == 24
    assert round(overall["drift"], 2) == 0.91
    assert round(overall["gradient_bias"], 2) == 0.21


def test_noise_of_the_samples_hides_the_drift_in_the_excess_over_the_full_softmax(figure):
    overall = figure.correlations(CELLS)["all"]
    assert overall["cells"] == 33
    assert [round(overall[name], 2) for name in ("drift", "gradient_bias")] == [0.76, 0.63]
    kept = [one for one in CELLS if one["label"] == figure.KEPT]
    assert all(figure.measure_of(one, "drift") == 0 for one in kept)
    excess = [round(one["excess"], 3) for one in kept if one["data"] == "diginetica"]
    assert excess == [0.109, 0.039, 0.011]


def test_movielens_has_no_drift_to_predict(figure):
    movies = [one for one in CELLS if one["data"] == "ml1m"]
    assert {figure.measure_of(one, "drift") for one in movies} == {0.0}
    assert max(one["excess"] for one in movies) < 0.02
    assert round(movies[0]["chi2"], 1) == 0.4


def test_excess_over_logq_kept_is_paired_by_data_n_and_seed(figure):
    rows = [
        {"data": "ml1m", "n": n, "label": label, "excess_by_seed": excess}
        for n, label, excess in (
            (4, figure.KEPT, [1.0, 2.0]),
            (16, figure.KEPT, [0.5, 0.25]),
            (4, "refined", [4.0, 8.0]),
            (16, "refined", [1.0, 1.0]),
        )
    ]
    assert [
        (one["n"], one["excess_by_seed"], one["excess"]) for one in figure.over_logq_kept(rows)
    ] == [
        (4, [3.0, 6.0], 4.5),
        (16, [0.5, 0.75], 0.625),
    ]


def test_page_counts_best_rates_at_an_end_of_the_grid():
    at_an_end = [one for one in CELLS if one["lr"] in (0.02, 0.1)]
    assert f"for {len(at_an_end)} of the 33 cells" in DOCS
    best = {one["data"]: one["full_softmax_lr"] for one in CELLS}
    assert best == {"synthetic": 0.1, "diginetica": 0.1, "ml1m": 0.05}


def test_rank_correlation_without_the_rule_for_small_drifts(figure):
    for rows, expected in ((CELLS, 0.66), (figure.over_logq_kept(CELLS), 0.93)):
        drifts = [max(one["drift"], 0.0) for one in rows]
        correlation = figure.rank_correlation(drifts, [one["excess"] for one in rows])
        assert round(correlation, 2) == expected
