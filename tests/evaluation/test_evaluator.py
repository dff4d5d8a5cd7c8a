"""The evaluation against a loop over users in float64."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from candid.data import Role
from candid.errors import ArtifactError, ConfigError, DataError
from candid.evaluation import EvaluationConfig, compare, evaluate

CONFIG = EvaluationConfig(ks=(1, 3, 10), batch_size=16, intervals=True, popularity_slices=4)


def by_loop(dataset, model, ks, filter_seen=True, catalog=None):
    """Per user: ranking metrics by name, whether an item is relevant, target NLLs, ranked items."""
    scores = model.users.double().numpy() @ model.items.double().numpy().T
    by_user = {}
    catalog = set(range(dataset.num_items)) if catalog is None else catalog
    for user in range(dataset.num_users):
        events = slice(*dataset.user_offsets[user : user + 2])
        items, roles = dataset.item_ids[events], dataset.roles[events]
        history, targets = items[roles == Role.TRAIN], items[roles == Role.TEST]
        targets = np.array([item for item in targets if item in catalog], dtype=int)
        if len(history) == 0 or len(targets) == 0:
            continue
        hidden = set(history.tolist()) if filter_seen else set()
        relevant = set(targets.tolist()) - hidden
        ranked = [item for item in np.argsort(-scores[user]) if item in catalog - hidden]
        row = {}
        for k in ks:
            gains = [item in relevant for item in ranked[:k]]
            ranks = [rank for rank, gain in enumerate(gains, 1) if gain]
            best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
            row[f"recall@{k}"] = len(ranks) / max(1, len(relevant))
            row[f"hit_rate@{k}"] = float(bool(ranks))
            row[f"mrr@{k}"] = 1 / ranks[0] if ranks else 0.0
            row[f"ndcg@{k}"] = sum(1 / math.log2(r + 1) for r in ranks) / max(best, 1e-9)
            row[f"popularity@{k}"] = np.mean(dataset.train_counts[ranked[:k]])
        log_z = np.log(np.exp(scores[user, sorted(catalog)]).sum())
        by_user[user] = (row, bool(relevant), log_z - scores[user, targets], ranked)
    return by_user


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("repeats", [False, True])
def test_evaluation_agrees_with_a_loop_over_users(make_random, filter_seen, repeats):
    dataset, model = make_random(max_targets=4, repeats=repeats)
    config = CONFIG.model_copy(update={"filter_seen": filter_seen})
    report = evaluate(model, dataset, config, max_length=5)
    by_user = by_loop(dataset, model, config.ks, filter_seen)
    ranked = [row for row, has_relevant, _, _ in by_user.values() if has_relevant]
    assert len(ranked) > 20
    for name in ranked[0]:
        rows = [one[0] for one in by_user.values()] if name.startswith("popularity") else ranked
        expected = np.mean([row[name] for row in rows])
        assert report.metrics[name].value == pytest.approx(expected, abs=1e-12), name
    nll = np.concatenate([nll for _, _, nll, _ in by_user.values()])
    assert report.metrics["nll"].value == pytest.approx(nll.mean(), abs=1e-5)
    for k in config.ks:
        recommended = set().union(*(ranked[:k] for _, _, _, ranked in by_user.values()))
        assert report.metrics[f"coverage@{k}"].value == len(recommended) / dataset.num_items
    assert report.counts["users"] == len(by_user)
    assert report.counts["targets"] == len(nll)
    assert report.counts["users_without_relevant"] == len(by_user) - len(ranked)
    assert (report.counts["users_without_relevant"] > 0) == (repeats and filter_seen)
    assert model.longest == 5


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("which", ["warm", "cold"])
def test_evaluation_of_a_part_of_the_catalog(make_random, which, filter_seen):
    dataset, model = make_random(max_targets=6, num_items=200, repeats=True)
    chosen = (dataset.train_counts > 0) == (which == "warm")
    catalog = set(np.flatnonzero(chosen).tolist())
    assert 20 < len(catalog) < 180
    config = CONFIG.model_copy(update={"filter_seen": filter_seen, "catalog": which})
    report = evaluate(model, dataset, config, max_length=5)
    by_user = by_loop(dataset, model, config.ks, filter_seen, catalog)
    ranked = [row for row, has_relevant, _, _ in by_user.values() if has_relevant]
    assert len(ranked) > 15
    for name in ranked[0]:
        rows = [one[0] for one in by_user.values()] if name.startswith("popularity") else ranked
        expected = np.mean([row[name] for row in rows])
        assert report.metrics[name].value == pytest.approx(expected, abs=1e-12), name
    nll = np.concatenate([nll for _, _, nll, _ in by_user.values()])
    assert report.metrics["nll"].value == pytest.approx(nll.mean(), abs=1e-5)
    recommended = set().union(*(ranked[:10] for _, _, _, ranked in by_user.values()))
    assert report.metrics["coverage@10"].value == len(recommended) / len(catalog)
    assert report.counts["targets"] == len(nll)
    assert report.settings["catalog"] == which


@pytest.mark.parametrize("which", ["all", "warm", "cold"])
def test_counts_that_are_given_replace_the_stored_ones(make_random, which):
    """Popularity, slices and the parts of the catalog follow the given counts only."""
    dataset, model = make_random(max_targets=6, num_items=200, repeats=True)
    # Unrelated to the stored counts, and not whole.
    item_counts = np.random.default_rng(5).integers(0, 4, 200) * 0.75
    is_member = {"all": item_counts >= 0, "warm": item_counts > 0, "cold": item_counts == 0}[which]
    catalog = set(np.flatnonzero(is_member).tolist())
    config = CONFIG.model_copy(update={"catalog": which})
    report = evaluate(model, dataset, config, max_length=5, item_counts=item_counts)
    by_user = by_loop(dataset, model, config.ks, True, catalog)
    popularity = [item_counts[ranked[:10]].mean() for _, _, _, ranked in by_user.values()]
    assert report.metrics["popularity@10"].value == pytest.approx(np.mean(popularity))
    ndcg = [row["ndcg@10"] for row, has_relevant, _, _ in by_user.values() if has_relevant]
    assert report.metrics["ndcg@10"].value == pytest.approx(np.mean(ndcg), abs=1e-12)
    targets = [
        int(item)
        for user in by_user
        for item in np.asarray(dataset.item_ids[slice(*dataset.user_offsets[user : user + 2])])[
            np.asarray(dataset.roles[slice(*dataset.user_offsets[user : user + 2])]) == Role.TEST
        ]
        if item in catalog
    ]
    assert report.counts["cold_targets"] == sum(item_counts[item] == 0 for item in targets)
    assert report.counts["cold_items"] == (item_counts == 0).sum()
    sizes = {part.label: part.targets for part in report.slices["target_popularity"]}
    labels = {0.0: "untrained", 0.75: "1/4 (count 0.8 to 0.8)", 1.5: "2/4 (count 1.5 to 1.5)"}
    for count, label in labels.items():
        expected = sum(item_counts[item] == count for item in targets)
        assert sizes.get(label, 0) == expected
    assert report.settings["item_counts"] == "targets"
    assert evaluate(model, dataset, CONFIG, max_length=5).settings["item_counts"] == "interactions"
    with pytest.raises(DataError, match=r"item_counts has shape \[3\]; it must .*\[200\]"):
        evaluate(model, dataset, CONFIG, max_length=5, item_counts=np.ones(3))


def test_evaluation_of_a_part_without_targets(make_dataset, make_model):
    history = [(0, Role.TRAIN), (1, Role.TRAIN), (0, Role.TEST)]
    dataset = make_dataset([history], num_items=3)
    model = make_model(torch.zeros(1, 2), torch.zeros(3, 2))
    config = EvaluationConfig(ks=(1,), metric="ndcg@1", catalog="cold", filter_seen=False)
    with pytest.raises(DataError, match=r"no test target among its cold items: .*catalog"):
        evaluate(model, dataset, config, max_length=5)
    with pytest.raises(ConfigError, match=r"evaluation.ks: 2 exceeds the 1 items"):
        evaluate(
            model,
            dataset,
            EvaluationConfig(ks=(2,), metric="ndcg@2", catalog="cold"),
            max_length=5,
        )


def test_batch_size_does_not_change_metrics(make_random):
    dataset, model = make_random(max_targets=3)
    reports = [
        evaluate(model, dataset, CONFIG.model_copy(update={"batch_size": size}), max_length=5)
        for size in (1, 7, 1000)
    ]
    first = reports[0].to_json()
    for report in reports[1:]:
        other = report.to_json()
        assert other["counts"] == first["counts"]
        for name, estimate in first["metrics"].items():
            # Matrix products of another shape round scores, and so the NLL, differently.
            tolerance = 1e-6 if name == "nll" else 1e-12
            assert other["metrics"][name] == pytest.approx(estimate, abs=tolerance), name
        assert len(other["slices"]) == len(first["slices"])


def weighted(slices, name, weight):
    parts = [(one.metrics[name].value, getattr(one, weight)) for one in slices]
    return sum(value * num for value, num in parts if value is not None) / sum(
        num for value, num in parts if value is not None
    )


def test_slices_add_up_to_the_total(make_random):
    dataset, model = make_random(num_users=200, num_items=300, max_targets=1)
    report = evaluate(model, dataset, CONFIG, max_length=5)
    assert set(report.slices) == {"target_popularity", "history_length", "target_warmth"}
    for slices in report.slices.values():
        assert len(slices) > 1
        assert sum(one.targets for one in slices) == report.counts["targets"]
        for name in ("ndcg@10", "recall@3", "mrr@10", "popularity@3", "nll"):
            total = report.metrics[name].value
            assert weighted(slices, name, "queries") == pytest.approx(total, abs=1e-12)


def test_slices_of_users_with_several_targets(make_random, make_dataset, make_model):
    """A slice keeps the list; only targets of the slice are relevant in it."""
    train = [[(0, 0), (0, 0), (0, 0), (1, 0)], [(2, 0)]]
    dataset = make_dataset([[*train[0], (2, 3), (3, 3)], [*train[1], (0, 3)]], 4)
    model = make_model(torch.eye(2), torch.tensor([[4.0, 1], [3, 0], [2, 9], [1, 0]]))
    config = EvaluationConfig(ks=(1, 2), metric="recall@1", popularity_slices=1, intervals=False)
    report = evaluate(model, dataset, config, max_length=9)
    # The list of user 0 is [2, 3], both targets; that of user 1 is [0, 1 or 3], target 0.
    assert report.metrics["recall@1"].value == pytest.approx((1 / 2 + 1) / 2)
    cold, warm = report.slices["target_popularity"]
    assert (cold.label, cold.queries, cold.targets) == ("untrained", 1, 1)
    assert (warm.queries, warm.targets) == (2, 2)
    assert cold.metrics["recall@1"].value == 0
    assert cold.metrics["recall@2"].value == 1
    assert cold.metrics["mrr@2"].value == 1 / 2
    assert warm.metrics["recall@1"].value == 1
    assert [one.label for one in report.slices["target_warmth"]] == ["cold", "warm"]
    many, model = make_random(num_users=200, max_targets=4)
    report = evaluate(model, many, CONFIG, max_length=5)
    popularity = report.slices["target_popularity"]
    assert weighted(popularity, "nll", "targets") == pytest.approx(report.metrics["nll"].value)


def test_target_in_the_history_is_relevant_only_without_filter_seen(make_dataset, make_model):
    histories = [[(0, 0), (1, 3)], [(2, 0), (2, 3)], [(1, 0), (1, 3), (0, 3)]]
    dataset = make_dataset(histories, 3)
    model = make_model(torch.eye(3)[[0, 2, 2]], torch.eye(3))
    config = EvaluationConfig(ks=(1, 3), metric="recall@3", intervals=False)
    hidden = evaluate(model, dataset, config, max_length=9)
    assert hidden.counts["targets_seen_before"] == 2
    assert hidden.counts["users_without_relevant"] == 1
    assert hidden.metrics["recall@3"].value == 1
    unfiltered = evaluate(
        model, dataset, config.model_copy(update={"filter_seen": False}), max_length=9
    )
    assert unfiltered.counts["targets_seen_before"] == 0
    assert unfiltered.metrics["recall@1"].value == pytest.approx((0 + 1 + 0) / 3)


def test_report_of_hidden_targets(make_dataset, make_model):
    histories = [[(0, 0), (1, 0), (0, 3)], [(2, 0), (2, 3)]]
    dataset, model = make_dataset(histories, 3), make_model(torch.eye(3)[:2], torch.eye(3))
    config = EvaluationConfig(ks=(1,), metric="recall@1", intervals=False, popularity_slices=0)
    hidden = evaluate(model, dataset, config, max_length=9)
    caption = "targets_seen_before: 2, in the history and so not ranked (evaluation.filter_seen)"
    stored = "item_counts: interactions, not the targets of a loader"
    assert hidden.table().caption == f"{caption}\n{stored}"
    assert hidden.metrics["recall@1"].value is None
    assert hidden.metrics["popularity@1"].value is not None
    with pytest.raises(
        DataError,
        match=r"recall@1 is undefined: all 2 test targets .* set evaluation\.filter_seen = fal",
    ):
        hidden.summary()
    unfiltered = evaluate(
        model, dataset, config.model_copy(update={"filter_seen": False}), max_length=9
    )
    assert unfiltered.table().caption == stored
    counts = dataset.train_counts.astype(float)
    counted = evaluate(model, dataset, config, max_length=9, item_counts=counts)
    assert counted.table().caption == caption
    assert next(iter(unfiltered.summary())) == "recall@1"


def test_list_metrics_leave_out_users_with_empty_lists(make_dataset, make_model):
    """User 0 has seen the whole catalog: the list is empty and must not count as popularity 0."""
    everything = [(0, Role.TRAIN), (1, Role.TRAIN), (2, Role.TRAIN), (0, Role.TEST)]
    dataset = make_dataset([everything, [(0, Role.TRAIN), (1, Role.TEST)]], 3)
    model = make_model(torch.zeros(2, 2), torch.zeros(3, 2))
    config = EvaluationConfig(ks=(1, 2), metric="recall@1", intervals=False, popularity_slices=0)
    report = evaluate(model, dataset, config, max_length=9)
    assert report.counts["users"] == 2
    # Trained on: item 0 twice, items 1 and 2 once. User 1 gets items 1 and 2, of percentile
    # (0 less popular + 2 equally popular / 2) / 3 = 1/3.
    for k in (1, 2):
        assert report.metrics[f"popularity@{k}"].value == 1
        assert report.metrics[f"popularity_percentile@{k}"].value == pytest.approx(1 / 3)
    frame = report.per_user.to_frame()
    assert frame["popularity@1"].to_list() == [None, 1.0]


def test_cold_users_and_items_are_counted(make_dataset, make_model):
    role = Role.HISTORY
    histories = [[(0, 0), (1, 0), (2, 3)], [(0, role), (1, 3)], [(1, 3)], [(0, 0)]]
    dataset = make_dataset(histories, 4)
    model = make_model(torch.eye(4), torch.eye(4))
    config = EvaluationConfig(ks=(1,), metric="recall@1", intervals=False)
    counts = evaluate(model, dataset, config, max_length=9).counts
    assert counts["users_with_targets"] == 3
    assert counts["users_without_history"] == 1
    assert counts["users"] == 2
    assert counts["cold_users"] == 1
    assert counts["cold_targets"] == counts["cold_target_items"] == 1
    assert counts["cold_items"] == 2
    model.needs_history = False
    report = evaluate(model, dataset, config, max_length=9)
    assert (report.counts["users"], report.counts["users_without_history"]) == (3, 0)
    users = {part.label: part.per_user.user_ids.tolist() for part in report.slices["user_warmth"]}
    assert users == {"cold": [1, 2], "warm": [0]}


def test_intervals_contain_the_value_and_grow_with_confidence(make_random):
    dataset, model = make_random(num_users=300)
    config = CONFIG.model_copy(update={"intervals": True})
    wide = evaluate(model, dataset, config, max_length=5)
    narrow = evaluate(model, dataset, config.model_copy(update={"confidence": 0.5}), max_length=5)
    for name, estimate in wide.metrics.items():
        if name.startswith("coverage"):
            assert estimate.low is None
            continue
        assert estimate.low <= estimate.value <= estimate.high
        assert narrow.metrics[name].high - narrow.metrics[name].low < estimate.high - estimate.low
    assert wide.slices["history_length"][0].metrics["nll"].low is not None


def test_true_log_prob_adds_excess_nll(make_random):
    dataset, model = make_random(max_targets=3)
    lengths = []

    def true_log_prob(held_out):
        lengths.append(len(held_out))
        return -np.linspace(1, 2, len(held_out.target_ids))

    report = evaluate(model, dataset, CONFIG, max_length=5, true_log_prob=true_log_prob)
    assert lengths == [report.counts["users"]]
    values = {name: estimate.value for name, estimate in report.metrics.items()}
    assert values["true_nll"] == pytest.approx(1.5)
    assert values["excess_nll"] == pytest.approx(values["nll"] - 1.5)
    assert report.metrics["excess_nll"].low is not None


def test_sample_of_users_depends_on_the_seed(make_random):
    dataset, model = make_random(num_users=100)
    config = CONFIG.model_copy(update={"max_users": 20})
    users = [evaluate(model, dataset, config, max_length=5).per_user.user_ids for _ in range(2)]
    assert np.array_equal(*users)
    assert len(users[0]) == 20
    assert (np.diff(users[0]) > 0).all()
    other = evaluate(model, dataset, config.model_copy(update={"seed": 1}), max_length=5)
    assert not np.array_equal(users[0], other.per_user.user_ids)


def test_validation_targets_are_history_of_test(make_dataset, make_model):
    dataset = make_dataset([[(0, 0), (1, 2), (2, 3)]], 3)
    model = make_model(torch.tensor([[0.0, 2, 1]]), torch.eye(3))
    config = EvaluationConfig(ks=(1,), metric="recall@1", intervals=False)
    for role in (Role.VALIDATION, Role.TEST):
        report = evaluate(model, dataset, config, role=role, max_length=9)
        # Item 1 is the target of validation; in the test it is seen and left out.
        assert report.metrics["recall@1"].value == 1
        assert report.settings["role"] == role.name.lower()


def test_module_mode_is_restored(make_random):
    dataset, fixed = make_random()

    class Model(nn.Module):
        needs_history = True

        def encode_queries(self, queries):
            assert not self.training
            assert not torch.is_grad_enabled()
            return fixed.encode_queries(queries)

        def encode_catalog(self, progress=None):
            return fixed.items

    model = Model().train()
    evaluate(model, dataset, CONFIG, max_length=5)
    assert model.training


def test_progress_reaches_the_number_of_users(make_random):
    dataset, model = make_random()
    stages = []
    report = evaluate(
        model,
        dataset,
        CONFIG,
        max_length=5,
        progress=lambda *stage: stages.append(stage),
    )
    num = report.counts["users"]
    assert stages == [
        ("evaluating users", min(16 * (i + 1), num), num) for i in range(-(-num // 16))
    ]


def test_report_is_saved_as_plain_json(make_random, tmp_path):
    dataset, model = make_random()
    report = evaluate(model, dataset, CONFIG, max_length=5)
    path = tmp_path / "new" / "report.json"
    report.save(path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(report.to_json()))
    assert [one.name for one in path.parent.iterdir()] == ["report.json"]
    stored = json.loads(path.read_text())
    assert set(stored["metrics"]["ndcg@10"]) == {"value", "low", "high"}
    assert stored["settings"]["filter_seen"] is True
    assert next(iter(report.summary())) == "ndcg@10"
    assert report.table().row_count == 12
    assert report.slice_table("history_length").row_count == len(report.slices["history_length"])


def test_table_fits_a_terminal_of_80_columns(make_random):
    dataset, model = make_random()
    config = EvaluationConfig(ks=(1, 3, 5, 10, 20), intervals=True)
    report = evaluate(model, dataset, config, max_length=5)
    screen = Console(width=80)
    with screen.capture() as captured:
        screen.print(report.table())
    assert "popularity_percentile" in captured.get()
    assert "…" not in captured.get()


def test_per_user_values_average_to_the_metric(make_random):
    dataset, model = make_random(repeats=True, max_targets=2)
    report = evaluate(model, dataset, CONFIG, max_length=5)
    frame = report.per_user.to_frame()
    assert frame.height == report.counts["users"]
    assert frame["ndcg@10"].null_count() == report.counts["users_without_relevant"] > 0
    assert frame["ndcg@10"].mean() == pytest.approx(report.metrics["ndcg@10"].value)


def test_users_of_a_slice_average_to_its_metric(make_random):
    dataset, model = make_random(max_targets=3)
    report = evaluate(model, dataset, CONFIG, max_length=5)
    for parts in report.slices.values():
        for part in parts:
            held, names = part.per_user, part.per_user.names
            assert len(held.user_ids) == part.queries
            assert (np.diff(held.user_ids) > 0).all()
            for c, name in enumerate(names):
                ratio = held.numerators[:, c].sum() / held.denominators[:, c].sum()
                assert ratio == pytest.approx(part.metrics[name].value)
            assert compare(held, held, "nll").difference == 0


def test_evaluate_refuses_impossible_requests(make_random, make_dataset, make_model):
    dataset, model = make_random()
    with pytest.raises(ConfigError, match=r"evaluation\.ks: 100 exceeds the 50 items"):
        evaluate(model, dataset, EvaluationConfig(), max_length=5)
    with pytest.raises(DataError, match="the dataset has no validation split"):
        evaluate(model, dataset, CONFIG, role=Role.VALIDATION, max_length=5)
    with pytest.raises(ConfigError, match="has 49 items and the dataset has 50"):
        evaluate(make_model(model.users, model.items[:49]), dataset, CONFIG, max_length=5)
    with pytest.raises(ConfigError, match=r"evaluation\.nll must be true"):
        evaluate(
            model,
            dataset,
            CONFIG.model_copy(update={"nll": False}),
            max_length=5,
            true_log_prob=lambda held_out: np.zeros(len(held_out.target_ids)),
        )
    broken = make_model(model.users, model.items * torch.nan)
    with pytest.raises(ArtifactError, match="diverged"):
        evaluate(broken, dataset, CONFIG, max_length=5)
    lonely = make_dataset([[(0, 3)]], 10)
    with pytest.raises(DataError, match="no user with a test target has a history"):
        evaluate(make_model(torch.ones(1, 2), torch.ones(10, 2)), lonely, CONFIG, max_length=5)
