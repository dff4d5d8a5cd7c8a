from pathlib import Path

import pytest

from candid.config import (
    DEFAULT_RECIPE,
    RunConfig,
    default_recipe,
    describe,
    load_data_config,
    load_recipe,
    parse_config,
)
from candid.errors import ConfigError
from candid.losses import LOSSES
from candid.losses.estimator import Estimator
from candid.samplers import SAMPLERS
from candid.towers import TOWERS

RECIPE = """
name = "small"
[data]
interactions = "log.csv"
time = "at"
[sampler]
type = "uniform"
num_candidates = 8
[loss]
type = "sampled_softmax"
correction = "logq"
[training]
epochs = 2
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def test_load_recipe_fills_in_defaults(recipe):
    config = load_recipe(str(recipe))
    assert (config.name, config.seed, config.training.epochs) == ("small", 0, 2)
    assert config.data is not None
    assert config.data.interactions == "log.csv"
    assert config.loss.correction == "logq"
    assert config.sampler == SAMPLERS["uniform"].Config(num_candidates=8)


def test_overrides_apply_before_validation(recipe):
    config = load_recipe(recipe, ["training.epochs=7", "sampler=none", "loss.type=full_softmax"])
    assert config.training.epochs == 7
    assert config.sampler is None
    assert isinstance(config.loss, LOSSES["full_softmax"].Config)


def test_error_of_a_wrong_override_mentions_set(recipe):
    with pytest.raises(ConfigError, match=r"small\.toml with --set: unknown config key 'foo'"):
        load_recipe(recipe, ["foo=1"])


def test_override_of_one_key_of_a_default_tower(recipe):
    tower = load_recipe(recipe, ["model.query_tower.dim=16"]).model.query_tower
    assert tower == TOWERS["causal_transformer"].Config(dim=16)


def test_run_config_survives_a_round_trip(recipe):
    config = load_recipe(recipe)
    assert parse_config(config.model_dump(mode="json"), "run.json") == config


def test_published_code_is_accepted_for_samples_with_replacement_alone():
    loss = {"type": "sampled_softmax", "correction": "published_code"}
    uniform = {"type": "uniform"}
    config = parse_config({"name": "x", "loss": loss, "sampler": uniform}, "x")
    assert not config.loss.estimates_probability
    popular = {"type": "exact_popular", "num_exact": 2, "rest": uniform}
    for sampler in (uniform | {"distinct": True}, popular):
        with pytest.raises(ConfigError, match=r"loss\.correction.*samples with replacement alone"):
            parse_config({"name": "x", "loss": loss, "sampler": sampler}, "x")


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_sampler_are_checked_against_each_other(loss):
    table = {"name": "x", "loss": {"type": loss}}
    with_sampler = table | {"sampler": {"type": "uniform"}}
    good, bad = (
        (with_sampler, table) if LOSSES[loss].Config.needs_candidates else (table, with_sampler)
    )
    parse_config(good, "x")
    with pytest.raises(ConfigError, match=r"\[sampler\]"):
        parse_config(bad, "x")


def test_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match="unknown tracker 'jsnol': did you mean 'jsonl'"):
        parse_config({**DEFAULT_RECIPE, "training": {"trackers": ["jsnol"]}}, "x")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_name_that_is_not_a_folder_name_is_refused(name):
    with pytest.raises(ConfigError, match="name"):
        parse_config({**DEFAULT_RECIPE, "name": name}, "x")


SET = {"type": "popularity", "num_candidates": 8, "distinct": True}


@pytest.mark.parametrize(
    "sampler",
    [
        SET,
        {"type": "in_batch", "distinct": True},
        {"type": "mixture", "components": [{"type": "uniform"}, SET]},
        {"type": "exact_popular", "rest": SET},
    ],
)
def test_jackknife_of_a_set_is_refused(sampler):
    table = {"name": "x", "sampler": sampler, "loss": {"type": "sampled_softmax"}}
    parse_config(table, "x")
    table["loss"]["jackknife"] = True
    with pytest.raises(ConfigError, match=r"loss\.jackknife does not work with .* distinct = true"):
        parse_config(table, "x")
    mixture = {"type": "mixture", "components": [{"type": "uniform"}, {"type": "popularity"}]}
    parse_config(table | {"sampler": mixture}, "x")


def test_default_recipe_is_the_default_correction_on_a_mixture():
    assert DEFAULT_RECIPE["loss"] == {"type": "sampled_softmax"}
    config = default_recipe()
    assert config.loss.estimator == Estimator("logq", False, "keep")
    assert isinstance(config.sampler, SAMPLERS["mixture"].Config)
    assert default_recipe(["seed=3"]).seed == 3


def test_load_data_config_applies_values_then_overrides(recipe):
    config = load_data_config(recipe, {"data.user": "who", "data.k_core": 3}, ["data.k_core=5"])
    assert (config.interactions, config.user, config.k_core) == ("log.csv", "who", 5)
    alone = load_data_config(None, {"data.interactions": "a.csv", "data.order": "n"})
    assert alone.order == "n"


def test_missing_or_wrong_data_section_is_named(recipe):
    recipe.write_text("name = 'x'")
    with pytest.raises(ConfigError, match=r"small\.toml: no section \[data\]"):
        load_data_config(recipe, {})
    with pytest.raises(ConfigError, match=r"command line: unknown config key 'data\.k_cor'"):
        load_data_config(None, {"data.interactions": "a", "data.time": "t", "data.k_cor": 1})


@pytest.mark.parametrize("override", ["dta.k_core=5", "k_core=5", "training.epochs=3"])
def test_override_of_another_section_is_refused_when_preparing(recipe, override):
    with pytest.raises(ConfigError, match=r"only keys of \[data\]"):
        load_data_config(recipe, {}, [override])


def test_every_recipe_key_has_a_meaning():
    keys = list(describe(RunConfig))
    assert {"training.lr", "loss.correction", "data.split.kind"} <= {key.key for key in keys}
    assert [key.key for key in keys if not key.meaning] == []


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_repository_are_valid(path):
    config = load_recipe(path)
    assert config.name == path.stem
    assert config.data is not None


def test_default_recipe_follows_the_dataset():
    import numpy as np
    import polars as pl

    from candid.data import PreparedDataset

    dataset = PreparedDataset(
        item_ids=np.array([0, 1], dtype=np.int32),
        user_offsets=np.array([0, 2]),
        roles=np.zeros(2, dtype=np.uint8),
        users=pl.DataFrame({"source_id": ["a"]}),
        items=pl.DataFrame({"source_id": range(7)}),
        manifest={"config": {"order": None}},
    )
    config = default_recipe(dataset=dataset)
    assert (config.evaluation.ks, config.evaluation.metric) == ((1, 5), "ndcg@5")
    assert config.batches.unit == "interaction"
    assert default_recipe().batches.unit == "sequence"
