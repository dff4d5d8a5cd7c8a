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


def test_a_recipe_becomes_typed_settings_with_defaults_for_the_rest(recipe):
    config = load_recipe(recipe)
    assert (config.name, config.seed, config.training.epochs) == ("small", 0, 2)
    assert config.data is not None
    assert config.data.interactions == "log.csv"
    assert config.loss.correction == "logq"
    assert config.sampler == SAMPLERS["uniform"].Config(num_candidates=8)


def test_overrides_come_before_validation(recipe):
    config = load_recipe(recipe, ["training.epochs=7", "sampler=none", "loss.type=full_softmax"])
    assert config.training.epochs == 7
    assert config.sampler is None
    assert isinstance(config.loss, LOSSES["full_softmax"].Config)


def test_a_wrong_override_is_not_blamed_on_the_recipe_alone(recipe):
    with pytest.raises(ConfigError, match=r"small\.toml with --set: unknown config key 'foo'"):
        load_recipe(recipe, ["foo=1"])


def test_one_key_of_a_default_tower_can_be_overridden(recipe):
    tower = load_recipe(recipe, ["model.query_tower.dim=16"]).model.query_tower
    assert tower == TOWERS["causal_transformer"].Config(dim=16)


def test_what_a_run_stores_is_read_back_equal(recipe):
    config = load_recipe(recipe)
    assert parse_config(config.model_dump(mode="json"), "run.json") == config


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_says_whether_it_goes_with_a_sampler(loss):
    table = {"name": "x", "loss": {"type": loss}}
    with_sampler = table | {"sampler": {"type": "uniform"}}
    good, bad = (with_sampler, table) if LOSSES[loss].needs_candidates else (table, with_sampler)
    parse_config(good, "x")
    with pytest.raises(ConfigError, match=r"\[sampler\]"):
        parse_config(bad, "x")


def test_an_unknown_tracker_is_found_before_anything_runs():
    with pytest.raises(ConfigError, match="unknown tracker 'jsnol': did you mean 'jsonl'"):
        parse_config({**DEFAULT_RECIPE, "training": {"trackers": ["jsnol"]}}, "x")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_a_name_is_a_plain_folder_name(name):
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
def test_a_jackknife_of_a_set_is_refused(sampler):
    table = {"name": "x", "sampler": sampler, "loss": {"type": "sampled_softmax"}}
    parse_config(table, "x")
    table["loss"]["jackknife"] = True
    with pytest.raises(ConfigError, match=r"loss\.jackknife cannot go with .* distinct = true"):
        parse_config(table, "x")
    draws = {"type": "mixture", "components": [{"type": "uniform"}, {"type": "popularity"}]}
    parse_config(table | {"sampler": draws}, "x")


def test_the_default_recipe_is_the_refined_loss_on_a_mixture():
    config = default_recipe()
    assert config.loss.correction == "refined"
    assert isinstance(config.sampler, SAMPLERS["mixture"].Config)
    assert default_recipe(["seed=3"]).seed == 3


def test_the_data_section_is_read_alone_with_values_and_overrides_on_top(recipe):
    config = load_data_config(recipe, {"data.user": "who", "data.k_core": 3}, ["data.k_core=5"])
    assert (config.interactions, config.user, config.k_core) == ("log.csv", "who", 5)
    alone = load_data_config(None, {"data.interactions": "a.csv", "data.order": "n"})
    assert alone.order == "n"


def test_a_data_section_that_is_missing_or_wrong_is_named(recipe):
    recipe.write_text("name = 'x'")
    with pytest.raises(ConfigError, match=r"small\.toml: no section \[data\]"):
        load_data_config(recipe, {})
    with pytest.raises(ConfigError, match=r"command line: unknown config key 'data\.k_cor'"):
        load_data_config(None, {"data.interactions": "a", "data.time": "t", "data.k_cor": 1})


@pytest.mark.parametrize("override", ["dta.k_core=5", "k_core=5", "training.epochs=3"])
def test_an_override_that_would_not_change_what_is_prepared_is_refused(recipe, override):
    with pytest.raises(ConfigError, match=r"only data\.\* decides"):
        load_data_config(recipe, {}, [override])


def test_every_key_of_a_recipe_has_a_meaning():
    keys = list(describe(RunConfig))
    assert {"training.lr", "loss.correction", "data.split.kind"} <= {key.key for key in keys}
    assert [key.key for key in keys if not key.meaning] == []


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path):
    config = load_recipe(path)
    assert config.name == path.stem
    assert config.data is not None


def test_the_default_recipe_follows_the_dataset():
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
