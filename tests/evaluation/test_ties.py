"""Metrics of tied items against all orders of them, one by one."""

from __future__ import annotations

import collections
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from candid.data import Role
from candid.errors import DataError
from candid.evaluation import EvaluationConfig, check_has_relevant, compare, evaluate
from candid.evaluation import cut_groups as cut_groups_module
from candid.evaluation.metrics import METRICS, popularity_percentile
from candid.evaluation.ties import rank_probabilities


def orders_of(scores, items):
    """All orders of some items, best first, in which only items of equal score change places."""
    levels = sorted({scores[item] for item in items}, reverse=True)
    groups = [[item for item in items if scores[item] == level] for level in levels]
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield list(itertools.chain(*parts))


def popularity_rank_of(item, counts, num_items):
    """1 for the largest count; equal counts share a rank; n + 1 without a count."""
    distinct = sorted({count for count in counts if count > 0}, reverse=True)
    return distinct.index(counts[item]) + 1 if counts[item] else num_items + 1


def diversity_of(vectors):
    """The mean of 1 - cosine over all pairs; NaN without a pair."""
    distances = []
    for one, other in itertools.combinations(vectors.astype(np.float64), 2):
        lengths = np.linalg.norm(one) * np.linalg.norm(other)
        distances.append(1 - (one @ other / lengths if lengths else 0))
    return np.mean(distances) if distances else math.nan


def novelty_of(item, dataset):
    """-log2 of the share of users with the item among users with training interactions."""
    users, others = set(), set()
    for user in range(dataset.num_users):
        events = slice(*dataset.user_offsets[user : user + 2])
        trained = dataset.item_ids[events][dataset.roles[events] == Role.TRAIN]
        users |= {user} if len(trained) else set()
        others |= {user} if item in trained else set()
    return -math.log2(max(len(others), 1) / len(users))


def metrics_of(order, relevant, ks, popularity_ranks, num_items):
    values = {}
    for k in ks:
        ranks = [rank for rank, item in enumerate(order[:k], 1) if item in relevant]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
        values[f"recall@{k}"] = len(ranks) / len(relevant)
        values[f"hit_rate@{k}"] = float(bool(ranks))
        values[f"mrr@{k}"] = 1 / ranks[0] if ranks else 0.0
        values[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in ranks) / ideal
        values[f"precision@{k}"] = len(ranks) / k
        precisions = [number / rank for number, rank in enumerate(ranks, 1)]
        values[f"map@{k}"] = sum(precisions) / len(relevant)
        gains = [
            (num_items + 1 - rank) - (num_items + 1 - popularity_ranks[order[rank - 1]])
            for rank in ranks
        ]
        values[f"serendipity@{k}"] = sum(max(gain, 0) / num_items for gain in gains) / k
    return values


def by_enumeration(dataset, model, ks, *, filter_seen, catalog):
    """Mean metrics, coverage and tied targets, over all orders of the ties of each user."""
    scores = (model.users @ model.items.T).numpy()
    percentile = popularity_percentile(dataset.train_counts)
    counts, vectors = dataset.train_counts.tolist(), model.items.numpy()
    popularity_ranks = [
        popularity_rank_of(item, counts, len(catalog)) for item in range(dataset.num_items)
    ]
    novelty = np.array([novelty_of(item, dataset) for item in range(dataset.num_items)])
    ranked, listed, num_tied = [], [], 0
    missing = {k: np.ones(dataset.num_items) for k in ks}
    for user in range(dataset.num_users):
        events = slice(*dataset.user_offsets[user : user + 2])
        items, roles = dataset.item_ids[events].tolist(), dataset.roles[events]
        history = [item for item, role in zip(items, roles, strict=True) if role == Role.TRAIN]
        targets = {i for i, role in zip(items, roles, strict=True) if role == Role.TEST}
        targets &= catalog
        if not targets:
            continue
        allowed = sorted(catalog - set(history)) if filter_seen else sorted(catalog)
        relevant = targets & set(allowed)
        orders = list(orders_of(scores[user], allowed))
        lists = {}
        for k in ks:
            tops = [order[:k] for order in orders]
            counts = np.bincount(np.concatenate(tops).astype(int), minlength=dataset.num_items)
            missing[k] *= 1 - counts / len(orders)
            lists[f"popularity@{k}"] = np.mean([dataset.train_counts[top].mean() for top in tops])
            means = [percentile[top].mean() for top in tops]
            lists[f"popularity_percentile@{k}"] = np.mean(means)
            lists[f"mean_inv_user_freq@{k}"] = np.mean([novelty[top].mean() for top in tops])
            if k > 1:
                sets = collections.Counter(frozenset(top) for top in tops)
                values = [diversity_of(vectors[list(items)]) for items in sets]
                mean = np.average(values, weights=list(sets.values()))
                lists[f"intra_list_diversity@{k}"] = mean
        listed.append(lists)
        if relevant:
            rows = [
                metrics_of(order, relevant, ks, popularity_ranks, len(catalog)) for order in orders
            ]
            ranked.append({name: np.mean([row[name] for row in rows]) for name in rows[0]})
        for target in relevant:
            tied = [item for item in allowed if scores[user, item] == scores[user, target]]
            better = sum(scores[user, item] > scores[user, target] for item in allowed)
            num_tied += len(tied) > 1 and better < ks[-1]
    means = {name: np.mean([row[name] for row in ranked]) for name in ranked[0]}
    means |= {name: np.nanmean([row[name] for row in listed]) for name in listed[0]}
    for k in ks:
        means[f"coverage@{k}"] = 1 - missing[k][sorted(catalog)].mean()
    return means, num_tied


def tied_case(make_dataset, make_model, seed):
    """7 items with 3 distinct vectors, 6 users with 1 to 3 targets; a few seen before."""
    rng = np.random.default_rng(seed)
    histories = []
    for _ in range(6):
        items = rng.choice(7, 5, replace=False).tolist()
        targets = [*items[2 : 2 + rng.integers(1, 4)], *items[: rng.integers(0, 2)]]
        rows = [(item, Role.TRAIN) for item in items[:2]]
        histories.append([*rows, *((item, Role.TEST) for item in targets)])
    dataset = make_dataset(histories, 7)
    vectors = rng.integers(-2, 3, (3, 2)).astype(np.float32)
    users = rng.integers(-2, 3, (6, 2)).astype(np.float32)
    items = torch.from_numpy(vectors[rng.integers(0, 3, 7)])
    return dataset, make_model(torch.from_numpy(users), items)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("filter_seen", "which"), [(True, "all"), (False, "all"), (True, "warm")])
def test_metrics_are_means_over_all_orders_of_ties(
    make_dataset, make_model, monkeypatch, seed, filter_seen, which
):
    dataset, model = tied_case(make_dataset, make_model, seed)
    catalog = set(range(7)) if which == "all" else set(np.flatnonzero(dataset.train_counts))
    # Groups of two rows are counted at a time, so that the rows of a batch are put together.
    monkeypatch.setattr(cut_groups_module, "MAX_ROWS", 2)
    ks = (1, 2, 4)
    config = EvaluationConfig(
        ks=ks,
        metric="mrr@4",
        metrics=METRICS,
        catalog=which,
        filter_seen=filter_seen,
        batch_size=4,
        intervals=False,
    )
    report = evaluate(model, dataset, config, max_length=9)
    expected, num_tied = by_enumeration(
        dataset, model, ks, filter_seen=filter_seen, catalog=catalog
    )
    for name, value in expected.items():
        # Unit vectors are stored in float32.
        tolerance = 1e-6 if name.startswith("intra_list") else 1e-12
        assert report.metrics[name].value == pytest.approx(value, abs=tolerance), name
    assert {name.split("@")[0] for name in expected} == set(METRICS)
    assert report.counts["tied_targets"] == num_tied > 0
    assert f"tied_targets: {num_tied}" in report.table().caption
    assert report.to_json()["counts"]["tied_targets"] == num_tied


@pytest.mark.parametrize(
    ("size", "num_relevant", "start", "depth"),
    [(5, 2, 0, 5), (5, 2, 1, 4), (6, 1, 3, 4), (4, 4, 2, 9), (6, 5, 0, 2), (1, 1, 2, 3)],
)
def test_rank_probabilities_of_a_group(size, num_relevant, start, depth):
    relevant, first, up_to = np.zeros(depth), np.zeros(depth), np.zeros(depth)
    subsets = list(itertools.combinations(range(size), num_relevant))
    for places in subsets:
        ranks = [start + place for place in places if start + place < depth]
        relevant[ranks] += 1 / len(subsets)
        for number, rank in enumerate(ranks, 1):
            up_to[rank] += number / len(subsets)
        if start + places[0] < depth:
            first[start + places[0]] += 1 / len(subsets)
    rows, ones = np.full(num_relevant, 1), np.ones(num_relevant, dtype=np.int64)
    ranks = rank_probabilities(rows, start * ones, size * ones, num_rows=3, depth=depth)
    np.testing.assert_allclose(ranks.relevant, [np.zeros(depth), relevant, np.zeros(depth)])
    np.testing.assert_allclose(ranks.first[1], first, atol=1e-15)
    assert ranks.first[[0, 2]].sum() == 0
    expected = [np.zeros(depth), up_to, np.zeros(depth)]
    np.testing.assert_allclose(ranks.relevant_up_to, expected, atol=1e-14)


def five_vectors(num_users=300, num_items=100, seed=0):
    """Histories over items i of vector i % 5; low ids are more popular."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, num_items + 1) ** 1.3
    histories, tastes = [], rng.integers(0, 5, num_users)
    for taste in tastes:
        odds = np.where(np.arange(num_items) % 5 == taste, popularity, 0)
        target = rng.choice(num_items, p=odds / odds.sum())
        others = np.where(np.arange(num_items) % 5 == (taste + 1) % 5, popularity, 0)
        history = rng.choice(num_items, 6, p=others / others.sum())
        histories.append([*((item, Role.TRAIN) for item in history), (target, Role.TEST)])
    return histories, tastes


def renamed(histories, new_ids):
    return [[(int(new_ids[item]), role) for item, role in history] for history in histories]


@pytest.mark.parametrize("names", ["same", "reversed", "random"])
def test_metrics_of_five_vectors_over_100_items(make_dataset, make_model, names):
    """A target is one of the 20 items of the best group: each order is equally likely."""
    histories, tastes = five_vectors()
    new_ids = {
        "same": np.arange(100),
        "reversed": np.arange(100)[::-1],
        "random": np.random.default_rng(1).permutation(100),
    }[names]
    dataset = make_dataset(renamed(histories, new_ids), 100)
    items = torch.zeros(100, 5)
    items[torch.from_numpy(new_ids.copy())] = torch.eye(5)[np.arange(100) % 5]
    model = make_model(torch.eye(5)[tastes], items)
    report = evaluate(model, dataset, EvaluationConfig(intervals=False), max_length=9)
    assert report.metrics["recall@1"].value == pytest.approx(1 / 20, abs=1e-12)
    gains = [1 / math.log2(rank + 1) for rank in range(1, 11)]
    assert report.metrics["ndcg@10"].value == pytest.approx(sum(gains) / 20, abs=1e-12)
    assert round(report.metrics["ndcg@10"].value, 3) == 0.227
    assert report.counts["tied_targets"] == 300


@pytest.mark.parametrize("ks", [(1, 5, 10, 20, 100), (1, 3, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_renamed_items_change_no_metric(make_dataset, make_model, ks, seed):
    histories, tastes = five_vectors(num_users=120, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(5, 4, generator=generator)[np.arange(100) % 5]
    users = torch.randn(120, 4, generator=generator) + vectors[tastes]
    other_users = torch.randn(120, 4, generator=generator)
    config = EvaluationConfig(ks=ks, metric=f"ndcg@{ks[1]}", intervals=True)
    documents, comparisons = [], []
    for new_ids in (np.arange(100), np.random.default_rng(seed).permutation(100)):
        dataset = make_dataset(renamed(histories, new_ids), 100)
        items = torch.zeros_like(vectors)
        items[torch.from_numpy(new_ids)] = vectors
        reports = [
            evaluate(make_model(queries, items), dataset, config, max_length=9)
            for queries in (users, other_users)
        ]
        documents.append(reports[0].to_json())
        comparisons.append(compare(*reports, config.metric))
    assert_close(*documents)
    assert comparisons[0].p_value == comparisons[1].p_value
    assert comparisons[0].difference == pytest.approx(comparisons[1].difference, abs=1e-9)


def assert_close(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-9)
    else:
        assert one == other


def test_untied_lists_need_no_second_pass(make_random, monkeypatch):
    dataset, model = make_random(max_targets=3)
    monkeypatch.setattr("candid.evaluation.evaluation_pass.count_cut_groups", None)
    report = evaluate(model, dataset, EvaluationConfig(ks=(1, 10), intervals=False), max_length=5)
    assert report.counts["tied_targets"] == 0
    assert "tied" not in report.table().caption


def test_table_names_the_users_of_the_means(make_random):
    dataset, model = make_random(max_targets=2, repeats=True)
    config = EvaluationConfig(ks=(1, 10), intervals=False)
    report = evaluate(model, dataset, config, max_length=5)
    values = report.per_user.to_frame()["ndcg@10"].drop_nulls()
    num, total = report.counts["users_ranked"], report.counts["users"]
    assert num == len(values) < total
    assert report.table().title == f"test: {num} of {total} users"
    assert report.metrics["ndcg@10"].value == pytest.approx(values.mean())
    for part in report.slices["history_length"]:
        ranked = part.per_user.to_frame()["ndcg@10"].drop_nulls()
        assert part.queries_ranked == len(ranked) <= part.queries
        assert part.to_json()["queries_ranked"] == len(ranked)
    unfiltered = replace(report, counts=report.counts | {"users_without_relevant": 0})
    assert unfiltered.table().title == f"test: {num} users"


def test_cold_targets_are_ranked_among_cold_items_only(make_dataset, make_model):
    """All targets are new: refused with the way out, accepted among the cold items."""
    histories = [[(0, 0), (2, 3)], [(1, 0), (3, 3)]]
    dataset = make_dataset(histories, 4)
    config = EvaluationConfig(ks=(1, 2), metric="recall@1", intervals=False)
    for part in ("all", "warm"):
        with pytest.raises(DataError, match=r'set evaluation\.catalog = "cold"'):
            check_has_relevant(
                dataset,
                config.model_copy(update={"catalog": part}),
                Role.TEST,
                needs_history=True,
            )
    cold = config.model_copy(update={"catalog": "cold"})
    check_has_relevant(dataset, cold, Role.TEST, needs_history=True)
    model = make_model(torch.eye(4)[[2, 2]], torch.eye(4))
    report = evaluate(model, dataset, cold, max_length=5)
    # User 0 gets its target first; user 1 gets it second.
    assert report.metrics["recall@1"].value == 1 / 2
    assert report.metrics["mrr@2"].value == 3 / 4


def test_group_of_the_whole_catalog(make_dataset, make_model):
    """A catalog of several blocks in which all items are tied."""
    num_items, num_users = 9000, 5
    rng = np.random.default_rng(0)
    histories = [
        [(int(item), Role.TRAIN if i < 40 else Role.TEST) for i, item in enumerate(row)]
        for row in rng.integers(0, num_items, (num_users, 41))
    ]
    dataset = make_dataset(histories, num_items)
    model = make_model(torch.ones(num_users, 2), torch.ones(num_items, 2))
    config = EvaluationConfig(ks=(1, 10), metric="mrr@10", filter_seen=False, intervals=False)
    metrics = evaluate(model, dataset, config, max_length=5).metrics
    for k in (1, 10):
        assert metrics[f"recall@{k}"].value == pytest.approx(k / num_items, abs=1e-15)
        assert metrics[f"hit_rate@{k}"].value == pytest.approx(k / num_items, abs=1e-15)
        assert metrics[f"popularity_percentile@{k}"].value == pytest.approx(1 / 2, abs=1e-12)
        assert metrics[f"popularity@{k}"].value == pytest.approx(200 / num_items, abs=1e-12)
        coverage = 1 - (1 - k / num_items) ** num_users
        assert metrics[f"coverage@{k}"].value == pytest.approx(coverage, abs=1e-12)
