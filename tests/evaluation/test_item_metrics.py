"""Novelty, serendipity and intra-list diversity against values that are published or enumerated."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from candid.data import Role
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig, evaluate
from candid.evaluation import diversity as diversity_module
from candid.evaluation.diversity import IntraListDiversity
from candid.evaluation.item_metrics import inverse_user_frequency
from candid.evaluation.metrics import DEFAULT_METRICS, METRICS
from candid.evaluation.serendipity import Serendipity
from candid.evaluation.ties import RankedLists, RankedTargets

TRAIN, TEST = Role.TRAIN, Role.TEST


def untied(lists):
    """Lists of item ids, -1 after the end, without equal scores."""
    item_ids = np.asarray(lists, dtype=np.int64)
    scores = np.tile(-np.arange(item_ids.shape[1], dtype=np.float32), (len(item_ids), 1))
    scores = np.where(item_ids >= 0, scores, -np.inf).astype(np.float32)
    return RankedLists.of(item_ids, scores, item_ids.shape[1])


def test_serendipity_of_the_example_in_the_documentation_of_rectools():
    """Items i1, i2, i3, i4 with 3, 2, 0 and 0 users; i4 is recommended to no user."""
    serendipity = Serendipity.of(np.array([3, 2, 0, 0]), num_items=4)
    assert serendipity.popularity_ranks.tolist() == [1, 2, 5, 5]
    lists = np.array([[0, 1], [1, 2], [2, -1], [1, 2]])
    relevant = [{0, 1}, {1, 2}, {1}, {1}]
    places = [
        (row, item, rank)
        for row, items in enumerate(lists)
        for rank, item in enumerate(items)
        if item in relevant[row]
    ]
    rows, items, starts = np.array(places).T
    ranked = RankedTargets(rows, items, starts, np.ones_like(rows))
    values = serendipity.sums(ranked, rows, 4, (1, 2))
    assert values[:, 0].tolist() == [0, 0.25, 0, 0.25]
    assert values[:, 1].tolist() == [0, 0.5, 0, 0.125]


def test_novelty_of_the_example_in_the_documentation_of_rectools(make_dataset, make_model):
    """Users with items {1, 2}, {1} and {1}; item 3 has no user and counts as if it had one."""
    histories = [
        [(0, TRAIN), (1, TRAIN), (2, TEST)],
        [(0, TRAIN), (0, TRAIN), (1, TEST)],
        [(0, TRAIN), (1, TEST)],
    ]
    dataset = make_dataset(histories, 3)
    assert dataset.train_user_counts.tolist() == [3, 1, 0]
    np.testing.assert_allclose(inverse_user_frequency(dataset), [0, np.log2(3), np.log2(3)])
    scores = torch.tensor([[0.0, 1, 2], [0, 2, 1], [2, 1, 0]])
    model = make_model(scores, torch.eye(3))
    config = EvaluationConfig(ks=(1, 2), metric="recall@1", filter_seen=False, intervals=False)
    report = evaluate(model, dataset, config, max_length=5)
    per_user = report.per_user.to_frame()
    assert per_user["mean_inv_user_freq@1"].to_list() == pytest.approx([1.5849625, 1.5849625, 0])
    assert per_user["mean_inv_user_freq@2"].to_list() == pytest.approx(
        [1.5849625, 1.5849625, 0.79248125]
    )


def test_users_of_an_item_are_counted_once(make_random):
    dataset, _ = make_random(num_users=200, num_items=30, repeats=True)
    expected = np.zeros(30)
    for user in range(dataset.num_users):
        events = slice(*dataset.user_offsets[user : user + 2])
        trained = dataset.item_ids[events][dataset.roles[events] == TRAIN]
        expected[sorted(set(trained.tolist()))] += 1
    assert dataset.train_user_counts.tolist() == expected.tolist()
    assert (dataset.train_user_counts < dataset.train_counts).any()


@pytest.mark.parametrize("cells", [1, 300, 2**22])
def test_diversity_by_vectors_is_the_mean_over_pairs(monkeypatch, cells):
    monkeypatch.setattr(diversity_module, "MAX_CELLS", cells)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(30, 4, generator=generator) * 7
    vectors[3] = 0
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(30)[:6] for _ in range(20)])
    lists[0], lists[1, 0], lists[2, 3:], lists[3, 1:], lists[4] = range(6), 3, -1, -1, -1
    diversity = IntraListDiversity.by_vectors(vectors, (1, 2, 5, 6))
    values = diversity.values(untied(lists), np.zeros((20, 5)))
    assert list(values) == [f"intra_list_diversity@{k}" for k in (2, 5, 6)]
    for k in (2, 5, 6):
        for row, items in enumerate(lists):
            pairs = list(itertools.combinations([item for item in items[:k] if item >= 0], 2))
            distances = [
                1 - torch.cosine_similarity(vectors[a].double(), vectors[b].double(), dim=0).item()
                for a, b in pairs
            ]
            value = values[f"intra_list_diversity@{k}"][row]
            if distances:
                assert value == pytest.approx(np.mean(distances), abs=1e-6)
            else:
                assert np.isnan(value)


def with_genres(dataset, genres):
    return replace(dataset, items=dataset.items.with_columns(genre=genres))


def test_diversity_by_an_attribute_of_one_value_is_the_share_of_differing_pairs(
    make_random,
):
    dataset, model = make_random(num_items=40)
    codes = np.random.default_rng(2).integers(0, 4, 40)
    config = EvaluationConfig(
        ks=(2, 10), metrics=METRICS, diversity_attribute="genre", intervals=False
    )
    by_text = with_genres(dataset, pl.Series([f"genre {code}" for code in codes]))
    report = evaluate(model, by_text, config, max_length=5)
    scores = (model.users @ model.items.T).numpy()
    expected = []
    for user in range(dataset.num_users):
        events = slice(*dataset.user_offsets[user : user + 2])
        seen = dataset.item_ids[events][dataset.roles[events] == TRAIN]
        if len(seen):
            best = [item for item in np.argsort(-scores[user]) if item not in set(seen)][:10]
            pairs = list(itertools.combinations(best, 2))
            expected.append(np.mean([codes[a] != codes[b] for a, b in pairs]))
    value = report.metrics["intra_list_diversity@10"].value
    assert value == pytest.approx(np.mean(expected), abs=1e-6)
    by_number = evaluate(model, with_genres(dataset, pl.Series(codes)), config, max_length=5)
    assert by_number.metrics["intra_list_diversity@10"].value == value
    assert report.settings["diversity_attribute"] == "genre"


def test_diversity_by_an_attribute_of_several_values():
    """Distances 1 - 1/2, 1 - 1/√2 and 1; the item without a value has distance 1."""
    items = pl.DataFrame({"tags": ["a|b", "b|c", "a", None]})
    diversity = IntraListDiversity.by_attribute(items, "tags", (2,))
    lists = untied([[0, 1], [0, 2], [1, 2], [0, 3]])
    values = diversity.values(lists, np.zeros((4, diversity.item_values.shape[1])))
    expected = [1 / 2, 1 - np.sqrt(1 / 2), 1, 1]
    np.testing.assert_allclose(values["intra_list_diversity@2"], expected, atol=1e-6)


def test_diversity_refuses_an_attribute_that_cannot_be_used(make_random, monkeypatch):
    dataset, model = make_random()
    dataset = with_genres(dataset, pl.Series(np.arange(50) / 7))

    def measure(attribute):
        config = EvaluationConfig(
            ks=(10,), metrics=METRICS, diversity_attribute=attribute, intervals=False
        )
        return evaluate(model, dataset, config, max_length=5)

    with pytest.raises(ConfigError, match=r"diversity_attribute 'gnre': did you mean 'genre'"):
        measure("gnre")
    with pytest.raises(ConfigError, match="'genre' is of type Float64; name an attribute of text"):
        measure("genre")
    dataset = with_genres(dataset, pl.Series(np.arange(50)))
    monkeypatch.setattr(diversity_module, "MAX_ATTRIBUTE_CELLS", 2549)
    with pytest.raises(ConfigError, match="'genre' has 50 values, too many for 50 items"):
        measure("genre")


class RowModel:
    """Scores of the catalog without vectors."""

    needs_history, estimates_probability = True, False

    def __init__(self, model):
        self.model = model

    def score_catalog(self, queries):
        return self.model.encode_queries(queries) @ self.model.items.T


def test_model_without_vectors_has_diversity_by_attribute_only(make_random):
    dataset, model = make_random()
    dataset = with_genres(dataset, pl.Series(np.arange(50) % 3))
    config = EvaluationConfig(ks=(10,), metrics=METRICS, intervals=False)
    report = evaluate(RowModel(model), dataset, config, max_length=5)
    assert "intra_list_diversity@10" not in report.metrics
    config = config.model_copy(update={"diversity_attribute": "genre"})
    report = evaluate(RowModel(model), dataset, config, max_length=5)
    expected = evaluate(model, dataset, config, max_length=5)
    name = "intra_list_diversity@10"
    assert report.metrics[name].value == pytest.approx(expected.metrics[name].value, abs=1e-12)


def test_report_has_the_listed_metrics_with_unchanged_values(make_random):
    dataset, model = make_random(max_targets=3)
    full = evaluate(model, dataset, EvaluationConfig(ks=(2, 10)), max_length=5)
    assert {name.split("@")[0] for name in full.metrics} == {*DEFAULT_METRICS, "nll"}
    config = EvaluationConfig(ks=(2, 10), metrics=("coverage", "map", "popularity"), metric="map@2")
    report = evaluate(model, dataset, config, max_length=5)
    assert {name.split("@")[0] for name in report.metrics} == {
        "map",
        "popularity",
        "coverage",
        "nll",
    }
    for name, estimate in report.metrics.items():
        assert estimate == full.metrics[name]
    assert report.slice_table("history_length").columns[3].header == "map@2"
    assert report.slices["history_length"][0].queries_ranked > 0
