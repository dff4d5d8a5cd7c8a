"""A run whose loader leaves out interactions: its counts, its checks and its report."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import target_counts
from candid.config import parse_config
from candid.data import DataConfig, Role, prepare_folder
from candid.errors import ConfigError, DataError
from candid.features import FeatureTable
from candid.runs import build_objective, load_run, train_run
from candid.runs.features import RunFeatures, tower_context
from candid.training import Trainer

FIRST_ONLY = """\
user_id,item_id,t
1,welcome,1
1,a,2
1,b,3
1,c,4
1,a,5
2,welcome,1
2,b,2
2,a,3
2,a,4
2,c,5
3,welcome,1
3,c,2
3,b,3
3,b,4
3,a,5
4,welcome,1
4,a,2
4,c,3
4,c,4
4,b,5
"""
"""Every user begins with the item 'welcome', which is then history only. Two items are held out."""

IN_BATCH = {"type": "in_batch"}
MEMORY = {"type": "cross_batch_memory", "size": 8}
WITH_UNIFORM = {
    "type": "mixture",
    "components": [{"type": "in_batch"}, {"type": "uniform", "num_candidates": 4}],
}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "log.csv").write_text(FIRST_ONLY)
    config = DataConfig(interactions=str(tmp_path / "log.csv"), time="t")
    return prepare_folder(config, tmp_path / "data").dataset


def recipe(sampler=None, loss="sampled_softmax", batches=None, **training):
    tower = {"type": "causal_transformer", "dim": 8, "num_blocks": 1, "dropout": 0.0}
    return parse_config(
        {
            "name": "first-only",
            "device": "cpu",
            "threads": 1,
            "batches": {"batch_size": 4} | (batches or {}),
            "model": {"query_tower": tower, "item_tower": {"type": "item_embedding", "dim": 8}},
            "loss": {"type": loss},
            "training": {"epochs": 1} | training,
            "evaluation": {"ks": [1], "metric": "ndcg@1", "intervals": False},
        }
        | ({} if sampler is None else {"sampler": sampler}),
        "test",
    )


def by_name(dataset, values):
    return dict(zip(dataset.items["source_id"].to_list(), values, strict=True))


def test_first_items_have_frequency_0(data):
    counts = target_counts(data, recipe(IN_BATCH).batches)
    assert by_name(data, counts.tolist()) == {"a": 3, "b": 3, "c": 2, "welcome": 0}
    _, sampler = build_objective(recipe(IN_BATCH), data)
    q = sampler.frequency.log_q(torch.arange(4)).double().exp()
    expected = {"a": 3 / 8, "b": 3 / 8, "c": 2 / 8, "welcome": 0}
    assert by_name(data, q.tolist()) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("sampler", [IN_BATCH, MEMORY, {"type": "popularity"}])
def test_sampler_of_targets_is_refused_over_all_items(data, tmp_path, sampler):
    """An item that is never a target is never among the candidates of batches."""
    with pytest.raises(ConfigError) as refused:
        train_run(recipe(sampler), data, tmp_path / "run")
    text = str(refused.value)
    assert text.startswith(
        "item 'welcome' can never be sampled: its probability is 0, as that of 1"
    )
    assert "mix the sampler with uniform samples" in text
    assert "training.softmax_over = 'trained'" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        (IN_BATCH, {"softmax_over": "trained"}),
        (MEMORY, {"softmax_over": "trained"}),
        (WITH_UNIFORM, {}),
        (IN_BATCH, {"batches": {"empty_histories": True}}),
    ],
)
def test_the_ways_out_train(data, tmp_path, sampler, settings):
    train_run(recipe(sampler, **settings), data, tmp_path / "run")


def test_softmax_over_trained_leaves_out_items_that_are_never_a_target(data, tmp_path, monkeypatch):
    """The first loss of a model with constant scores is the log of the size of the softmax."""
    losses = []

    class Recorder(Trainer):
        def step(self, batch, effective_sample_size=False):
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.zero_()
            result = super().step(batch, effective_sample_size)
            losses.append(float(result[0]))
            return result

    monkeypatch.setattr("candid.runs.training.Trainer", Recorder)
    for name, size in (("trained", 3), ("all", 4)):
        train_run(recipe(loss="full_softmax", softmax_over=name), data, tmp_path / name)
        assert losses.pop() == pytest.approx(np.log(size), abs=1e-6)


def test_tower_of_features_has_no_id_for_an_item_that_is_never_a_target(data):
    bag = FeatureTable({}, {}, {})
    batches = recipe(loss="full_softmax").batches
    context = tower_context(data, batches, RunFeatures(item=bag))
    expected = {"a": True, "b": True, "c": True, "welcome": False}
    assert by_name(data, context.item_is_trained.tolist()) == expected
    assert tower_context(data, batches, RunFeatures()).item_is_trained is None


def test_run_states_the_interactions_of_an_epoch(data, tmp_path):
    lines = []

    class Display:
        def on_start(self, targets):
            lines.append(targets)

        def on_step(self, state, metrics):
            pass

        def on_validation(self, state, metrics):
            pass

    train_run(recipe(WITH_UNIFORM), data, tmp_path / "run", progress=Display())
    assert lines == [
        "an epoch trains on 8 of 12 training interactions (66 %); the rest: 4 first interactions, "
        "which have no history (batches.empty_histories = true trains on them); items "
        "with training interactions that are never a target: 1 of 4"
    ]
    assert load_run(tmp_path / "run", data).manifest["targets"] == {
        "interactions": 12,
        "trained": 8,
        "without_history": 4,
        "before_window": 0,
        "dropped": 0,
        "items": 4,
        "items_never_target": 1,
        "earlier": 0,
    }


def test_item_that_is_never_a_target_is_cold_in_reports(data, tmp_path):
    """'welcome' has 4 training interactions, all of them first; the test repeats it."""
    items = np.array(data.item_ids)
    welcome = by_name(data, range(4))["welcome"]
    last = data.user_offsets[1:] - 1
    assert (np.asarray(data.roles)[last] == Role.TEST).all()
    items[last[:2]] = welcome
    changed = replace(data, item_ids=items)
    settings = {"filter_seen": False, "nll": False}
    config = recipe(loss="full_softmax", batches={"num_workers": 0})
    train_run(config, changed, tmp_path / "run")
    run = load_run(tmp_path / "run", changed)
    report = run.evaluate(**settings)
    assert report.settings["item_counts"] == "targets"
    assert report.counts["cold_items"] == 1
    assert report.counts["cold_targets"] == 2
    assert {part.label: part.targets for part in report.slices["target_warmth"]} == {
        "cold": 2,
        "warm": 2,
    }
    assert report.slices["target_popularity"][0].label == "untrained"
    warm = run.evaluate(catalog="warm", **settings)
    assert warm.counts["targets"] == 2
    cold = run.evaluate(catalog="cold", **settings)
    assert cold.metrics["recall@1"].value == 1
    # 3 + 3 + 2 targets of an epoch; with empty histories 'welcome' is one, and warm.
    config = recipe(loss="full_softmax", batches={"empty_histories": True})
    train_run(config, changed, tmp_path / "all")
    assert load_run(tmp_path / "all", changed).evaluate(**settings).counts["cold_items"] == 0


def test_validation_counts_the_targets_of_the_loader(data, tmp_path):
    """Validation among cold items: 'welcome' is the only one, so every such target is found."""
    items = np.array(data.item_ids)
    items[np.asarray(data.roles) == Role.VALIDATION] = by_name(data, range(4))["welcome"]
    changed = replace(data, item_ids=items, items=data.items.with_columns(shelf=pl.lit("all")))
    table = recipe(loss="full_softmax").model_dump(mode="json")
    table["features"] = {"item": {"shelf": "categorical"}}
    table["model"]["item_tower"] = {"type": "item_features", "dim": 8}
    table["evaluation"] |= {"catalog": "cold", "filter_seen": False}
    result = train_run(parse_config(table, "test"), changed, tmp_path / "run")
    assert result.state.best == 1
    table["evaluation"] |= {"catalog": "warm"}
    with pytest.raises(DataError, match="no validation target among its warm items"):
        train_run(parse_config(table, "test"), changed, tmp_path / "warm")
    table["evaluation"] |= {"catalog": "all"}
    with pytest.raises(DataError, match="all 4 validation targets are cold items, which training"):
        train_run(parse_config(table, "test"), changed, tmp_path / "every")


def test_cold_items_are_refused_for_a_model_without_item_features(data, tmp_path):
    table = recipe(loss="full_softmax").model_dump(mode="json")
    table["evaluation"] |= {"catalog": "cold"}
    with pytest.raises(ConfigError, match=r"learns nothing about them: set model\.item_tower"):
        train_run(parse_config(table, "test"), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
