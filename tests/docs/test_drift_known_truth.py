"""The comparison of drift with models trained on a known truth: loss, truth and results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from candid.candidates import Candidates
from candid.losses import sampled_softmax

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads((ROOT / "benchmarks" / "results" / "drift_known_truth.json").read_text())
CELLS = DOCUMENT["cells"]


@pytest.fixture(scope="module")
def study(benchmark_script):
    return benchmark_script("drift_known_truth")


@pytest.fixture
def world(study):
    generator = torch.Generator().manual_seed(0)
    shape = study.CONTEXTS, study.ITEMS
    log_p = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(1)
    weights = torch.rand(study.CONTEXTS, generator=generator, dtype=torch.float64)
    return study.Truth(weights / weights.sum(), log_p)


@pytest.mark.parametrize(
    ("correction", "hits"),
    [
        ("refined", "mask"),
        ("logq", "keep"),
        ("logq", "mask"),
        ("published_code", "mask"),
        ("none", "mask"),
    ],
)
def test_loss_equals_the_sampled_softmax_of_the_library(study, world, correction, hits):
    generator = torch.Generator().manual_seed(1)
    cell = study.Cell("any", 4, correction, hits)
    contexts = torch.randn(study.CONTEXTS, 3, generator=generator)
    items = torch.randn(study.ITEMS, 3, generator=generator)
    pairs = torch.randint(study.CONTEXTS * study.ITEMS, (1, 64), generator=generator)
    drawn = torch.randint(study.ITEMS, (1, 64, 4), generator=generator)
    drawn[0, :32, 1] = pairs[0, :32] % study.ITEMS  # the positive itself
    loss = study.sampled_loss(cell, (contexts @ items.T)[None], world, pairs, drawn)

    log_count = (4 * torch.bincount(world.table).double() / len(world.table)).log().float()
    positives = pairs[0] % study.ITEMS
    expected = sampled_softmax(
        contexts[pairs[0] // study.ITEMS],
        items,
        positives,
        Candidates(
            ids=drawn[0],
            log_expected_count=log_count[drawn[0]],
            log_expected_count_positive=log_count[positives],
            num_samples=4,
        ),
        correction=correction,
        accidental_hits=hits,
    )
    torch.testing.assert_close(loss, expected.loss.mean()[None])


def test_proposal_has_the_item_frequencies_of_the_truth(world):
    torch.testing.assert_close(world.frequency, world.joint.sum(0), rtol=1e-3, atol=2e-6)


def test_divergence_equals_the_sum_over_all_pairs(study, world):
    logits = torch.randn(2, study.CONTEXTS, study.ITEMS, dtype=torch.float64)
    expected = []
    for model in logits.numpy():
        q = np.exp(model) / np.exp(model).sum(1, keepdims=True)
        p = np.exp(world.log_p.numpy())
        expected.append((world.weights.numpy()[:, None] * p * np.log(p / q)).sum())
    np.testing.assert_allclose(world.divergence(logits).numpy(), expected)


def test_full_softmax_learns_the_truth_and_a_model_ignores_the_others(study, world, monkeypatch):
    monkeypatch.setattr(study, "truth", lambda data: world)
    monkeypatch.setattr(study, "STEPS", 30)
    for cell in (study.Cell("any", 0), study.Cell("any", 4, "logq", "keep")):
        together = study.logits_of(study.fit(cell, [0.02, 0.1, 0.1], [0, 0, 1]))
        alone = study.logits_of(study.fit(cell, [0.1], [1]))
        torch.testing.assert_close(together[2:], alone, rtol=1e-3, atol=1e-4)
        before = study.logits_of(study.initial_tables([1]))
        assert world.divergence(alone) < world.divergence(before)


def test_results_contain_every_cell_with_the_script_settings(study):
    expected = {
        (cell.data, cell.label, cell.n)
        for data in study.SETS
        for cell in study.cells(data)
        if cell.n
    }
    assert {(one["data"], one["label"], one["n"]) for one in CELLS} == expected
    settings = DOCUMENT["settings"]
    assert tuple(settings["rates"]) == study.RATES
    assert settings["steps"] == study.STEPS
    assert (settings["dim"], settings["true_dim"]) == (study.DIM, study.TRUE_DIM)


def test_excess_is_the_mean_difference_over_the_same_seeds_at_the_best_rate():
    for one in CELLS:
        grid = one["grid"]
        assert {len(values) for values in grid.values()} == {3}
        best = min(grid, key=lambda rate: np.mean(grid[rate]))
        assert one["lr"] == float(best)
        differences = np.subtract(grid[best], one["full_softmax_kl"])
        assert one["excess"] == pytest.approx(differences.mean(), abs=1e-12)


def test_page_states_rank_correlations_levels_and_rates(benchmark_script):
    figure = benchmark_script("drift_figure")
    overall = figure.correlations(CELLS)["all"]
    assert overall["cells"] == 24
    assert [round(overall[name], 2) for name in ("drift", "gradient_bias")] == [0.97, 0.17]
    drifts = [max(one["drift"], 0.0) for one in CELLS]
    assert round(figure.rank_correlation(drifts, [one["excess"] for one in CELLS]), 2) == 0.98
    kept = {(one["data"], one["n"]): one for one in CELLS if one["label"] == figure.KEPT}
    assert all(figure.measure_of(one, "drift") == 0 for one in kept.values())
    excess = sorted(one["excess"] for one in kept.values())
    assert [round(value, 3) for value in (excess[0], excess[-1])] == [0.010, 0.031]
    smallest = sorted(CELLS, key=lambda one: one["excess"])[:3]
    largest = sorted(CELLS, key=lambda one: one["gradient_bias"])[-3:]
    for three in (smallest, largest):
        assert {(one["label"], one["n"]) for one in three} == {(figure.KEPT, 4)}
    refined = [one for one in CELLS if (one["label"], one["n"]) == ("refined", 64)]
    drift, excess = (sorted(round(one[name], 3) for one in refined) for name in ("drift", "excess"))
    assert (drift[0], drift[-1], excess[0], excess[-1]) == (0.001, 0.005, 0.030, 0.047)
    at_an_end = sum(one["lr"] in (0.015, 0.15) for one in CELLS)
    page = (ROOT / "docs" / "benchmarks" / "estimators.md").read_text()
    assert f"{at_an_end} of the 24 cells and for the full softmax" in page
    assert {one["full_softmax_lr"] for one in CELLS} == {0.15}
    assert {round(one["chi2"]) for one in CELLS} == {8, 13, 14}


def test_page_states_rank_correlations_with_equal_rows_and_without_logq_kept(benchmark_script):
    figure = benchmark_script("drift_figure")

    def correlations(rows, excess):
        return [
            round(
                figure.rank_correlation(
                    [figure.measure_of(one, measure) for one in rows],
                    [one[excess] for one in rows],
                ),
                2,
            )
            for measure in figure.MEASURES
        ]

    others = [one for one in CELLS if one["label"] != figure.KEPT]
    assert len(others) == 18
    assert correlations(others, "excess") == [0.96, 0.78]
    assert correlations(others, "excess_equal_rows") == [0.96, 0.80]
    assert correlations(CELLS, "excess_equal_rows") == [0.89, 0.56]
    small = [one for one in CELLS if one["label"] == figure.KEPT and one["n"] == 4]
    excess = sorted(round(one["excess_equal_rows"], 3) for one in small)
    assert (excess[0], excess[-1]) == (0.037, 0.059)
    for one in CELLS:
        assert one["n"] < 64 or one["excess_equal_rows"] == pytest.approx(one["excess"])
