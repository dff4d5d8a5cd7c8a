"""Defaults chosen from a dataset: each rule, and what an override does to it."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from candid.config import DataFacts, default_recipe, recipe_for
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError
from candid.samplers import SAMPLERS
from candid.towers import TOWERS


def facts(**changes):
    values = {
        "has_order": True,
        "has_times": False,
        "num_items": 50_000,
        "num_units": 100_000,
        "num_targets": 1_000_000,
        "share_repeats": 0.0,
        "num_interactions": 1_100_000,
    }
    return DataFacts(**(values | changes))


def dataset(histories, *, num_items=7, order="n"):
    """Return a dataset of given histories, all of them training interactions."""
    return PreparedDataset(
        item_ids=np.concatenate(histories).astype(np.int32),
        user_offsets=np.cumsum([0, *map(len, histories)]),
        roles=np.full(sum(map(len, histories)), Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame({"source_id": range(len(histories))}),
        items=pl.DataFrame({"source_id": range(num_items)}),
        manifest={"config": {"order": order}},
    )


def test_facts_count_targets_windows_and_repeats():
    histories = [[1, 2, 1], [3], list(range(6)) * 100]
    found = DataFacts.of(dataset(histories))
    assert (found.has_order, found.num_items) == (True, 7)
    assert found.num_targets == 2 + 599  # the first interaction of a user has no history
    assert found.num_units == 1 + 3  # 599 targets are three windows of 200
    assert found.num_interactions == 604
    assert found.share_repeats == pytest.approx((1 + 594) / 604)


def test_facts_without_order_count_every_interaction():
    found = DataFacts.of(dataset([[1, 2], [3]], order=None))
    assert (found.has_order, found.num_units, found.num_targets) == (False, 3, 3)


def test_held_out_repeats_do_not_count():
    data = dataset([[1, 2, 1]])
    data.roles[2] = Role.TEST
    assert DataFacts.of(data).share_repeats == 0


def test_facts_of_the_windows_are_those_of_the_loader():
    from candid.batches import Loader, epoch_targets

    rng = np.random.default_rng(0)
    data = dataset([rng.integers(0, 7, n) for n in (1, 2, 201, 202, 402, 5)])
    config, _ = recipe_for(DataFacts.of(data))
    found = DataFacts.of(data)
    assert found.num_targets == epoch_targets(data, config.batches).summary.trained
    assert found.num_units == Loader(data, config.batches, seed=0).num_units


@pytest.mark.parametrize(
    ("num_units", "batch_size"), [(10, 16), (1_105, 16), (8_617, 32), (26_000, 128), (10**7, 128)]
)
def test_batches_of_few_users_are_small(num_units, batch_size):
    config, chosen = recipe_for(facts(num_units=num_units))
    assert config.batches.batch_size == batch_size
    reason = next(one.reason for one in chosen if one.key == "batches.batch_size")
    assert f"{-(-num_units // batch_size):,} step" in reason


def test_small_catalog_has_the_full_softmax():
    config, _ = recipe_for(facts(num_items=5_000))
    assert not config.loss.needs_candidates
    assert config.sampler is None
    config, _ = recipe_for(facts(num_items=5_001))
    assert config.loss.needs_candidates
    assert config.sampler is not None


@pytest.mark.parametrize(
    ("changes", "is_sampled"),
    [
        ({"loss.correction": "refined"}, True),
        ({"loss.type": "sampled_softmax"}, True),
        ({"loss": {"type": "bce"}}, True),
        ({"sampler": {"type": "uniform"}}, True),
        ({"sampler.components": [{"type": "uniform"}]}, True),
        ({"loss": "full_softmax"}, False),
        ({"loss.precision": "float32"}, False),
        ({}, False),
    ],
)
def test_override_of_loss_or_sampler_decides_for_a_small_catalog(changes, is_sampled):
    config, _ = recipe_for(facts(num_items=100), changes)
    assert config.loss.needs_candidates == is_sampled
    assert (config.sampler is not None) == is_sampled


def test_full_softmax_of_a_large_catalog_needs_one_override():
    config, _ = recipe_for(facts(), {"loss.type": "full_softmax"})
    assert config.sampler is None


def test_overrides_win_and_have_no_reason():
    config, chosen = recipe_for(facts(), {"batches.batch_size": 7, "training.epochs": 2})
    assert (config.batches.batch_size, config.training.epochs) == (7, 2)
    assert {"batches.batch_size", "training.epochs"} & {one.key for one in chosen} == set()


def test_row_wise_tables_have_the_running_mean_unless_they_are_sharded():
    config, _ = recipe_for(facts(), {"training.tables": "row_adam"})
    assert config.training.average == recipe_for(facts(), {})[0].training.average is not None
    config, chosen = recipe_for(facts(), {"training.tables": "sharded_row_adam"})
    assert config.training.average is None
    assert "training.average" not in {one.key for one in chosen}


def test_interactions_as_units_have_plain_embeddings():
    config, _ = recipe_for(facts(), {"batches.unit": "interaction"})
    assert config.batches.batch_size == 1024
    assert config.model.query_tower == TOWERS["user_embedding"].Config(dim=128)


@pytest.mark.parametrize(("share", "hides"), [(0.0, True), (0.019, True), (0.02, False)])
def test_repeats_decide_whether_seen_items_are_hidden(share, hides):
    config, chosen = recipe_for(facts(share_repeats=share))
    assert config.evaluation.filter_seen is hides
    assert any(one.key == "evaluation.filter_seen" for one in chosen) is not hides


@pytest.mark.parametrize(
    ("share", "others", "overrides", "temperature"),
    [
        (0.09, {}, {}, 0.07),
        (0.1, {}, {}, 0.05),
        (0.1, {"has_order": False}, {}, 0.07),
        (0.1, {}, {"model.temperature": 0.2}, 0.2),
        (0.1, {}, {"model.similarity": "dot"}, 1.0),
    ],
)
def test_common_repeats_have_a_lower_temperature(share, others, overrides, temperature):
    config, chosen = recipe_for(facts(share_repeats=share, **others), overrides)
    assert config.model.temperature == temperature
    reasons = {one.key: one.reason for one in chosen}
    if temperature == 0.05:
        assert reasons["model.temperature"].startswith("10% of the training interactions repeat")


@pytest.mark.parametrize(
    ("changes", "candidates"),
    [
        ({"num_targets": 499_999}, 2048),
        ({"num_targets": 500_000}, 512),
        ({"num_items": 5_001, "num_targets": 250_050}, 512),
        ({"num_targets": 499_999, "has_order": False}, 512),
        ({"num_items": 5_000, "num_targets": 200_000}, 512),
    ],
)
def test_few_histories_of_rare_items_have_more_candidates(changes, candidates):
    # A changed loss makes a small catalog a sampled one.
    config, _ = recipe_for(facts(**changes), {"loss.type": "sampled_softmax"})
    assert [one.num_candidates for one in config.sampler.components] == [candidates] * 2


@pytest.mark.parametrize(
    ("num_items", "num_users", "sample"),
    [
        (100_000, 2_049, 8192),
        (100_000, None, 8192),
        (100_000, 2_048, 2048),  # all users, as before
        (100_001, 2_049, 2048),
    ],
)
def test_validation_has_more_users_where_search_is_cheap(num_items, num_users, sample):
    targets = None if num_users is None else np.full(num_users, 10)
    config, _ = recipe_for(facts(num_items=num_items, targets_of_users=targets))
    assert config.evaluation.validation_users == sample


@pytest.mark.parametrize(
    ("changes", "overrides", "heads", "hidden"),
    [
        ({"num_items": 3_000}, {}, 2, 256),
        ({"num_items": 12_000}, {}, 2, 512),
        ({"num_items": 3_000}, {"model.query_tower.dim": 48, "model.item_tower.dim": 48}, 2, 192),
        ({"num_items": 3_000}, {"model.query_tower.dim": 33, "model.item_tower.dim": 33}, 1, 132),
        ({"num_items": 3_000}, {"model.query_tower.hidden": 64}, 2, 64),
        ({"num_items": 3_000, "num_targets": 499_999}, {}, 1, None),
        ({}, {}, 1, None),  # rare items
    ],
)
def test_many_targets_of_frequent_items_have_a_larger_tower(changes, overrides, heads, hidden):
    config, _ = recipe_for(facts(**changes), overrides)
    assert config.model.query_tower.num_heads == heads
    assert config.model.query_tower.hidden == hidden


def test_changed_sampler_replaces_the_candidates():
    sampler = {"type": "uniform", "num_candidates": 16}
    config, chosen = recipe_for(facts(), {"sampler": sampler})
    assert config.sampler == SAMPLERS["uniform"].Config(num_candidates=16)
    assert "sampler" not in {one.key for one in chosen}


def test_more_targets_need_fewer_epochs():
    epochs = [recipe_for(facts(num_targets=n))[0].training.epochs for n in (10**4, 10**6, 10**8)]
    assert epochs == [19, 6, 8]
    frequent = [facts(num_items=100, num_targets=n) for n in (10**4, 10**6, 10**8)]
    assert [recipe_for(one)[0].training.epochs for one in frequent] == [40, 26, 8]
    unordered = [replace(one, has_order=False) for one in frequent]
    assert [recipe_for(one)[0].training.epochs for one in unordered] == [40, 20, 6]


def test_default_recipe_of_a_dataset_has_its_defaults():
    config = default_recipe(["seed=3"], dataset([[1, 2, 3, 1]]))
    assert (config.seed, config.batches.batch_size) == (3, 16)
    assert (config.evaluation.ks, config.evaluation.metric) == ((1, 5), "ndcg@5")
    assert config.evaluation.filter_seen is False


def test_wrong_override_is_refused():
    with pytest.raises(ConfigError, match=r"default recipe: unknown config key 'training\.epoch'"):
        recipe_for(facts(), {"training.epoch": 2})


def test_length_of_the_training_follows_overrides():
    small = facts(num_units=1_000, num_targets=20_000)
    config, chosen = recipe_for(small, {"training.epochs": 10})
    reasons = {one.key: one.reason for one in chosen}
    assert config.training.warmup_steps == 31  # 5 % of 10 epochs of 63 steps
    assert reasons["training.warmup_steps"] == "5 % of 630 steps"
    assert config.training.average == 0.99
    config, _ = recipe_for(small, {"training.epochs": 2})
    assert config.training.average is None
    config, _ = recipe_for(small, {"batches.batch_size": 4, "training.epochs": 16})
    assert config.training.average == 0.999  # 4,000 steps


def test_value_of_another_type_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"batches\.batch_size"):
        recipe_for(facts(), {"batches.batch_size": "many"})


@pytest.mark.parametrize(("num_units", "patience"), [(3, 100), (40, 34), (150, 10), (10**6, 10)])
def test_patience_lasts_at_least_as_long_as_the_warm_up(num_units, patience):
    config, chosen = recipe_for(facts(num_units=num_units))
    assert config.training.patience == patience
    assert any(one.key == "training.patience" for one in chosen) is (patience != 10)


def test_patience_counts_validations():
    config, _ = recipe_for(facts(num_units=40), {"training.validate_every": 2})
    assert config.training.patience == 17  # 6 steps between validations
    config, _ = recipe_for(facts(num_units=40), {"training.validate_every_steps": 5})
    assert config.training.patience == 20


def test_number_of_steps_follows_max_steps():
    small = facts(num_units=1_000, num_targets=20_000)
    config, chosen = recipe_for(small, {"training.max_steps": 60})
    assert config.training.warmup_steps == 3
    assert config.training.average is None
    reasons = {one.key: one.reason for one in chosen}
    assert reasons["training.epochs"] == "20,000 targets an epoch; 60 steps in all"


@pytest.mark.parametrize(
    ("num_items", "ks", "metric"),
    [
        (50_000, [3, 20, 10], "ndcg@10"),
        (50_000, [3, 50], "ndcg@3"),
        (50_000, [50], "ndcg@50"),
        (7, [1, 3], "ndcg@3"),
    ],
)
def test_metric_follows_overridden_cut_offs(num_items, ks, metric):
    config, _ = recipe_for(facts(num_items=num_items), {"evaluation.ks": ks})
    assert config.evaluation.metric == metric


def test_first_interactions_are_targets_of_users_with_one_interaction():
    from candid.batches import epoch_targets

    data = dataset([[1], [2], [3]])
    config, chosen = recipe_for(DataFacts.of(data))
    assert config.batches.empty_histories
    assert epoch_targets(data, config.batches).summary.trained == 3
    reasons = {one.key: one.reason for one in chosen}
    assert reasons["batches.batch_size"] == "3 histories are 1 step an epoch"
    assert reasons["batches.empty_histories"].startswith("no user has two training interactions")
    assert not recipe_for(DataFacts.of(dataset([[1, 2], [3]])))[0].batches.empty_histories


@pytest.mark.parametrize(("num_items", "dim"), [(10_000, 64), (10_001, 128)])
def test_large_catalogs_have_wide_vectors(num_items, dim):
    config, _ = recipe_for(facts(num_items=num_items))
    assert (config.model.query_tower.dim, config.model.item_tower.dim) == (dim, dim)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.query_tower.type": "user_embedding"},
        {"model.item_tower": {"type": "item_embedding"}},
        {"model.query_tower.dim": 32, "model.item_tower.dim": 32},
    ],
)
def test_a_changed_tower_keeps_one_width(changes):
    config, chosen = recipe_for(facts(), changes)
    assert (
        config.model.query_tower.dim
        == config.model.item_tower.dim
        == changes.get("model.query_tower.dim", 64)
    )
    assert not any(one.key.endswith(".dim") for one in chosen)


@pytest.mark.parametrize(
    ("num_items", "num_targets", "lr", "dropout"),
    [
        (20_001, 1_000_000, 0.01, 0.5),
        (20_000, 1_000_000, 0.003, 0.2),
        (1_000, 499_999, 0.003, 0.3),
        (1_000, 500_000, 0.003, 0.2),
    ],
)
def test_rare_items_have_a_higher_learning_rate_and_more_dropout(
    num_items, num_targets, lr, dropout
):
    config, _ = recipe_for(facts(num_items=num_items, num_targets=num_targets))
    assert (config.training.lr, config.model.query_tower.dropout) == (lr, dropout)


def test_times_are_read_where_there_are_some():
    assert recipe_for(facts(has_times=True))[0].model.query_tower.time_bias
    assert not recipe_for(facts())[0].model.query_tower.time_bias


@pytest.mark.parametrize(
    ("split", "reads"),
    [
        ({"kind": "temporal"}, True),
        ({"kind": "rolling", "unit": "interaction"}, True),
        ({"kind": "temporal", "unit": "user"}, False),
        ({"kind": "leave-one-out"}, False),
    ],
)
def test_time_since_the_last_interaction_is_read_where_the_split_is_by_time(split, reads):
    """Where users are held out, the target follows its history as in training."""
    data = dataset([[1, 2, 3]])
    data.manifest["config"]["split"] = split
    assert not DataFacts.of(data).is_split_by_time  # there are no times
    with_times = replace(data, timestamps=np.array([1, 2, 3]))
    config, _ = recipe_for(DataFacts.of(with_times))
    assert config.model.query_tower.read_query_gap is reads


def test_split_by_time_has_fewer_epochs():
    many = facts(num_items=3_000)
    assert recipe_for(many)[0].training.epochs == 26
    assert recipe_for(replace(many, is_split_by_time=True))[0].training.epochs == 6


@pytest.mark.parametrize(
    ("changes", "initial"),
    [
        ({}, "co_visits"),
        ({"has_order": False}, "random"),
        ({"num_interactions": 20_000_001}, "random"),
    ],
)
def test_items_with_order_start_from_co_visits(changes, initial):
    assert recipe_for(facts(**changes))[0].model.item_tower.initial == initial


@pytest.mark.parametrize("max_length", [1, 7, 200])
@pytest.mark.parametrize("windows", ["all", "last"])
def test_windows_of_overrides_are_those_of_the_loader(max_length, windows):
    from candid.batches import Loader, epoch_targets

    rng = np.random.default_rng(0)
    data = dataset([rng.integers(0, 7, n) for n in (1, 2, 8, 9, 201, 202, 402, 5)])
    changes = {"batches.max_length": max_length, "batches.windows": windows}
    config, chosen = recipe_for(DataFacts.of(data), changes)
    units = Loader(data, config.batches, seed=0).num_units
    reasons = {one.key: one.reason for one in chosen}
    assert reasons["batches.batch_size"].startswith(f"{units} histories are ")
    trained = epoch_targets(data, config.batches).summary.trained
    assert reasons["training.epochs"].startswith(f"{trained:,} targets an epoch")


def test_share_of_late_targets():
    found = DataFacts.of(dataset([[1] * 11, [2] * 5, [3]]))  # 10, 4 and 0 targets
    assert found.share_of_late_targets(3) == (7 + 1) / 14
    assert found.share_of_late_targets(10) == 0
    assert DataFacts.of(dataset([[1] * 11], order=None)).share_of_late_targets(3) == 0


def test_other_similarities_have_no_low_temperature():
    config, _ = recipe_for(facts(), {"model.similarity": "dot"})
    assert (config.model.similarity, config.model.temperature) == ("dot", 1.0)
    config, _ = recipe_for(facts(), {"model.similarity": "dot", "model.temperature": 0.5})
    assert config.model.temperature == 0.5
    assert recipe_for(facts())[0].model.temperature == 0.07


@pytest.mark.parametrize(
    ("changes", "overrides", "expected"),
    [
        ({"has_order": False}, {}, ("row_adam", 0.04)),
        ({"has_order": False}, {"training.lr": 0.002}, ("row_adam", 0.008)),
        ({"has_order": False}, {"loss.type": "full_softmax"}, ("dense", None)),
        ({"has_order": False}, {"training.tables": "row_adagrad"}, ("row_adagrad", None)),
        ({"has_order": False}, {"training.tables": "dense"}, ("dense", None)),
        ({"has_order": False}, {"training.table_lr": 0.5}, ("row_adam", 0.5)),
        ({"has_order": False}, {"model.item_tower.type": "item_features"}, ("dense", None)),
        ({}, {}, ("dense", None)),
        ({"num_items": 199_999}, {}, ("dense", None)),
        ({"num_items": 200_000}, {}, ("row_adam", 0.04)),
    ],
)
def test_tables_train_by_row_where_a_step_reads_few_of_many_rows(changes, overrides, expected):
    config, _ = recipe_for(facts(**changes), overrides)
    assert (config.training.tables, config.training.table_lr) == expected
