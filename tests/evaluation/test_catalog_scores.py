"""A model that returns rows of scores is measured as a model of vectors is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.evaluation import EvaluationConfig, compare, evaluate
from candid.evaluation.catalog_scores import RowScores, VectorScores
from candid.index import Exclusions
from candid.inference import ItemSubset

CONFIG = EvaluationConfig(ks=(1, 3, 10), batch_size=16, popularity_slices=4, history_slices=(3, 6))


class ScoreRows:
    """The inner products of a model of vectors, as rows of scores."""

    reads_history = needs_user = False

    def __init__(self, model, estimates_probability=True):
        self.model, self.needs_history = model, model.needs_history
        self.estimates_probability = estimates_probability
        self.rows = []

    def score_catalog(self, queries):
        self.rows.append(len(queries))
        return (self.model.users[queries.user_ids].double() @ self.model.items.double().T).float()


def _all_metrics(report):
    """Yield the metrics of a report and of all its slices."""
    yield report["metrics"]
    for parts in report["slices"].values():
        yield from (part["metrics"] for part in parts)


def _numbers(value, path=""):
    """Return the numbers of nested tables and lists by path; None is NaN."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in parts for k, v in _numbers(part, f"{path}/{key}").items()}
    return {} if isinstance(value, str) else {path: np.nan if value is None else value}


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("catalog", ["all", "warm", "cold"])
@pytest.mark.parametrize("tied", [False, True])
def test_same_scores_give_the_same_report(make_random, filter_seen, catalog, tied):
    dataset, model = make_random(num_items=200, max_targets=4, repeats=True)
    if tied:  # 7 distinct vectors: most lists end inside a tied group
        model.items = model.items[:7][torch.arange(200) % 7]
    config = CONFIG.model_copy(update={"filter_seen": filter_seen, "catalog": catalog})
    by_vectors = evaluate(model, dataset, config, max_length=5)
    by_rows = evaluate(ScoreRows(model), dataset, config, max_length=5)
    expected, report = by_vectors.to_json(), by_rows.to_json()
    assert (expected["counts"]["tied_targets"] > 2) == tied

    # Both sum in float64 over float32 scores, but not in the same order.
    for one, other in zip(_all_metrics(expected), _all_metrics(report), strict=True):
        assert other.pop("nll") == pytest.approx(one.pop("nll"), abs=1e-5)
    if tied:  # the means over a tied group add up in the order of the list
        assert _numbers(report) == pytest.approx(_numbers(expected), rel=1e-12, nan_ok=True)
    else:
        assert json.dumps(report) == json.dumps(expected)
    is_rank = [c for c, n in enumerate(by_rows.per_user.names) if n != "nll"]
    np.testing.assert_allclose(
        by_rows.per_user.numerators[:, is_rank],
        by_vectors.per_user.numerators[:, is_rank],
        rtol=1e-12 if tied else 0,
    )
    assert abs(compare(by_rows, by_vectors, "ndcg@10").difference) < 1e-15


def test_rows_are_scored_for_one_batch_at_a_time(make_random):
    dataset, model = make_random()
    rows = ScoreRows(model)
    report = evaluate(rows, dataset, CONFIG, max_length=5)
    assert max(rows.rows) == CONFIG.batch_size
    assert sum(rows.rows) == report.counts["users"]


def test_scores_that_are_not_probabilities_have_no_nll(make_random):
    dataset, model = make_random()
    report = evaluate(ScoreRows(model, False), dataset, CONFIG, max_length=5)
    assert "nll" not in report.metrics
    assert report.settings["nll"] is False
    with pytest.raises(ConfigError, match="not a probability"):
        evaluate(
            ScoreRows(model, False),
            dataset,
            CONFIG,
            max_length=5,
            true_log_prob=lambda held_out: np.zeros(len(held_out.target_ids)),
        )


def test_scores_that_cannot_be_ranked_are_refused(make_random):
    dataset, model = make_random()
    model.items[3, 0] = torch.nan
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        evaluate(ScoreRows(model), dataset, CONFIG, max_length=5)
    model.items = model.items[:-1]
    with pytest.raises(ConfigError, match="the model has 49 items and the dataset has 50"):
        evaluate(ScoreRows(model), dataset, CONFIG, max_length=5)


def test_search_and_equal_scores_leave_out_items_that_are_not_ranked():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randint(-2, 3, (60, 3), generator=generator).float()
    query = torch.randint(-2, 3, (20, 3), generator=generator).float()
    is_ranked = np.random.default_rng(1).random(60) < 0.5
    exclude = Exclusions(torch.randint(60, (200,), generator=generator), torch.arange(0, 201, 10))
    by_vectors = VectorScores(ItemSubset(vectors, is_ranked), query)
    by_rows = RowScores(query @ vectors.T, torch.from_numpy(np.flatnonzero(is_ranked)))
    expected, log_z = by_vectors.search(25, exclude, with_log_partition=True)
    result, log_z_of_rows = by_rows.search(25, exclude, with_log_partition=True)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=0)
    torch.testing.assert_close(log_z_of_rows, log_z)
    scores = query.double() @ vectors.double().T
    for row in range(20):
        allowed = set(np.flatnonzero(is_ranked)) - set(exclude.item_ids[row * 10 :][:10].tolist())
        ids = result.item_ids[row][result.item_ids[row] >= 0].tolist()
        assert len(ids) == min(25, len(allowed))
        assert set(ids) <= allowed
        assert scores[row, ids].tolist() == result.scores[row, : len(ids)].tolist()
    rows = np.array([3, 17])
    part = Exclusions(
        torch.cat([exclude.item_ids[row * 10 :][:10] for row in rows]), torch.tensor([0, 10, 20])
    )
    last = expected.scores[rows, 4]
    pairs = []
    for one in (by_vectors, by_rows):
        pairs.append(set())
        for ids, is_equal in one.equal_scores(rows, last, part):
            found = is_equal.nonzero().tolist()
            pairs[-1] |= {(row, int(ids[column])) for row, column in found}
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) > 2
