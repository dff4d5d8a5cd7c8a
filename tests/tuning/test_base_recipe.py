"""Base recipes: the rules of the default recipe follow other values, a recipe of its own stays."""

import pytest

from candid.config import DataFacts, default_recipe
from candid.errors import ConfigError
from candid.tuning import BaseRecipe

FACTS = DataFacts(
    has_order=True,
    num_items=100,
    num_units=1_000,
    num_targets=20_000,
    share_repeats=0.0,
    num_interactions=21_000,
    has_times=False,
)


def test_default_recipe_follows_the_size_of_batches():
    base = BaseRecipe.default(FACTS, {"training.epochs": 30, "seed": 5})
    small, large = (base.recipe({"batches.batch_size": size}) for size in (8, 64))
    assert (small.training.epochs, small.seed, small.batches.batch_size) == (30, 5, 8)
    assert small.training.warmup_steps == 100  # of 3,750 steps
    assert large.training.warmup_steps == 24  # of 480
    assert (base.config.training.average, large.training.average) == (0.99, 0.99)
    assert base.recipe({"batches.batch_size": 4}).training.average == 0.999
    assert base.reasons({"batches.batch_size": 64})["training.warmup_steps"] == "5 % of 480 steps"


def test_values_win_over_rules_and_changes():
    base = BaseRecipe.default(FACTS, {"training.epochs": 30})
    config = base.recipe({"training.epochs": 3, "training.warmup_steps": 7})
    assert (config.training.epochs, config.training.warmup_steps) == (3, 7)


def test_recipe_of_its_own_keeps_the_other_keys():
    config = default_recipe(["training.warmup_steps=50", "training.average=0.9"])
    base = BaseRecipe.of(config)
    changed = base.recipe({"batches.batch_size": 4})
    assert changed.training == config.training
    assert changed.batches.batch_size == 4
    assert base.reasons({"batches.batch_size": 4}) == {}
    assert BaseRecipe.of(base) is base


@pytest.mark.parametrize("base", [BaseRecipe.default(FACTS), BaseRecipe(default_recipe())])
def test_wrong_value_is_refused_with_its_source(base):
    with pytest.raises(ConfigError, match=r"s\.toml: .*training\.lr"):
        base.recipe({"training.lr": -1}, "s.toml")
