"""Spaces: declarations in TOML, refusals in one sentence, and the default space."""

import dataclasses

import numpy as np
import pytest

from candid.config import DataFacts, default_recipe
from candid.errors import ConfigError
from candid.tuning import (
    BaseRecipe,
    Choices,
    Dimension,
    Range,
    Space,
    default_space,
    parse_space,
    read_space,
)

BASE = default_recipe(["loss.type=full_softmax", "sampler="])

GOOD = """
[space]
training.lr = { low = 1e-4, high = 1e-2, log = true }
"training.average" = { choices = ["none", 0.99] }
model.query_tower.dropout = { low = 0.0, high = 0.5, step = 0.1 }

[space.batches]
batch_size = { low = 16, high = 64, step = 16 }

[space.model.query_tower.dim]
choices = [32, 64]
also = ["model.item_tower.dim"]
"""


def test_file_declares_ranges_and_choices(tmp_path):
    (tmp_path / "space.toml").write_text(GOOD)
    space = read_space(tmp_path / "space.toml", BASE)
    assert dict(space.dimensions) == {
        "training.lr": Dimension("training.lr", Range(1e-4, 1e-2, log=True)),
        "training.average": Dimension("training.average", Choices(("none", 0.99))),
        "model.query_tower.dropout": Dimension(
            "model.query_tower.dropout", Range(0.0, 0.5, step=0.1)
        ),
        "batches.batch_size": Dimension("batches.batch_size", Range(16, 64, step=16)),
        "model.query_tower.dim": Dimension(
            "model.query_tower.dim", Choices((32, 64)), ("model.item_tower.dim",)
        ),
    }
    assert space.dimensions["batches.batch_size"].values.is_integer
    assert not space.dimensions["training.lr"].values.is_integer


def test_recipe_has_the_values_and_their_further_keys(tmp_path):
    (tmp_path / "space.toml").write_text(GOOD)
    space = read_space(tmp_path / "space.toml", BASE)
    config = space.recipe(BASE, {"model.query_tower.dim": 32, "training.average": "none"})
    assert config.model.query_tower.dim == config.model.item_tower.dim == 32
    assert config.training.average is None
    assert config.seed == BASE.seed
    assert config.training.lr == BASE.training.lr


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"training.lrr": {"low": 1e-4, "high": 1e-2}}, "did you mean 'training.lr'?"),
        ({"training.lr": {"low": 1e-4, "hihg": 1e-2}}, "unknown key 'hihg': did you mean 'high'?"),
        ({"training.lr": {"low": 1e-4}}, "training.lr has no high"),
        ({"training.lr": {"low": 0.1, "high": 0.01}}, "low 0.1 must be below high 0.01"),
        ({"training.lr": {"low": -1.0, "high": 0.01}}, "training.lr must be greater than 0"),
        ({"training.weight_decay": {"low": 0.0, "high": 1.0, "log": True}}, "low above 0, got 0"),
        ({"training.lr": {"low": "a", "high": 1.0}}, 'low must be a number, got "a"'),
        ({"training.lr": {"low": 0.1, "high": 1.0, "log": 1}}, "log must be true or false, got 1"),
        ({"training.lr": {"low": 0.1, "high": 1.0, "step": 2.0}}, "step must be above 0 and at"),
        ({"training.lr": {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}}, "log and step"),
        ({"training.lr": {"choices": [0.1]}}, "at least two values, got [0.1]"),
        ({"training.lr": {"choices": [0.1, 0.1]}}, "has a value twice"),
        ({"training.lr": {"choices": [0.1, 0.2], "low": 0.1}}, "has choices and low"),
        ({"training.lr": 0.1}, "training.lr must be { low, high } or { choices = [...] }, got 0.1"),
        ({"training.schedule": {"choices": ["linear", "step"]}}, "training.schedule must be"),
        ({"training.epochs": {"low": 1.5, "high": 9.5}}, "training.epochs must be a valid integer"),
        ({"training.lr": {"choices": [0.1, 0.2], "also": "seed"}}, "also must be a list of keys"),
        ({"seed": {"choices": [1, 2]}}, "seed cannot be searched"),
        ({"evaluation.metric": {"choices": ["a", "b"]}}, "evaluation.metric cannot be searched"),
        ({"training.lr": {"choices": [1, 2], "also": ["data.k_core"]}}, "data.k_core cannot be"),
        (
            {
                "model.query_tower.dim": {"choices": [8, 16]},
                "model.query_tower": {"choices": [{"type": "mlp"}, {"type": "user_embedding"}]},
            },
            "set the same part of the recipe",
        ),
    ],
)
def test_wrong_declaration_is_one_sentence_with_the_key(table, words):
    with pytest.raises(ConfigError) as caught:
        parse_space(table, BASE, "space.toml: [space]")
    message = str(caught.value)
    assert message.startswith("space.toml: [space]: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "declares no space; add a section [space]"),
        ("[spaces]\na = 1", "unknown section 'spaces': did you mean 'space'?"),
        ("[space]\n[", "is not valid TOML"),
    ],
)
def test_file_without_a_space_is_refused(tmp_path, text, words):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_space(tmp_path / "s.toml", BASE)
    assert words in str(caught.value)
    assert "s.toml" in str(caught.value)


def test_default_space_lies_around_the_values_of_the_recipe():
    space = default_space(BASE)
    assert list(space.dimensions) == [
        "training.lr",
        "batches.batch_size",
        "model.query_tower.dim",
        "model.query_tower.num_blocks",
        "model.query_tower.dropout",
    ]
    assert space.values_of(BASE).keys() == space.dimensions.keys()
    lr = space.dimensions["training.lr"].values
    assert (lr.low, lr.high, lr.log) == (2e-4, 5e-3, True)
    assert space.dimensions["model.query_tower.dim"].also == ("model.item_tower.dim",)


def test_default_space_has_only_keys_of_the_recipe():
    base = default_recipe(["model.query_tower.type=user_embedding", "batches.unit=interaction"])
    keys = default_space(base).dimensions.keys()
    assert "model.query_tower.dropout" not in keys
    assert "training.weight_decay" in keys
    assert "model.query_tower.dim" in keys


def test_values_from_a_range_have_few_digits_and_stay_within_the_bounds():
    values = Range(1.2345e-4, 1e-2)
    assert values.rounded(0.00234567) == 0.00235
    assert values.rounded(1.2345e-4) == 1.2345e-4
    assert Range(0.0, 0.5, step=0.1).rounded(0.1 + 0.2) == 0.3
    assert Range(1, 9).rounded(4) == 4


def test_values_of_leaves_out_what_the_space_does_not_contain():
    lr = {"training.lr": Dimension("training.lr", Range(0.01, 0.1))}
    assert Space(lr).values_of(BASE) == {}
    steps = Range(0.0, 0.5, step=0.2)
    assert [steps.contains(value) for value in (0.4, 0.3, 0.6, True, "a")] == [True] + [False] * 4
    assert [Range(1, 9).contains(value) for value in (1, 1.0, 10)] == [True, False, False]


FACTS = DataFacts(
    has_order=True,
    num_items=50_000,
    num_units=1_000,
    num_targets=20_000,
    share_repeats=0.0,
    num_interactions=21_000,
    has_times=False,
    targets_of_users=np.full(1_000, 20),
)


@pytest.mark.parametrize(
    ("targets", "is_searched"), [([20] * 9, False), ([500] * 9, True), ([60] * 9, False)]
)
def test_length_of_windows_is_searched_in_long_histories(targets, is_searched):
    facts = dataclasses.replace(FACTS, targets_of_users=np.array(targets))
    space = default_space(BaseRecipe.default(facts))
    assert ("batches.max_length" in space.dimensions) is is_searched
    if is_searched:
        assert space.dimensions["batches.max_length"].values == Choices((50, 100, 200))


def test_number_of_candidates_is_searched_with_a_sampled_loss():
    base = BaseRecipe.default(FACTS)
    numbers = [
        [part["num_candidates"] for part in parts]
        for parts in default_space(base).dimensions["sampler.components"].values.values
    ]
    own = [part["num_candidates"] for part in base.config.model_dump()["sampler"]["components"]]
    assert numbers == [[n // 2 for n in own], own, [2 * n for n in own]]
    one = BaseRecipe.default(FACTS, {"sampler": {"type": "uniform", "num_candidates": 64}})
    values = default_space(one).dimensions["sampler.num_candidates"].values
    assert values == Choices((32, 64, 128))
    full = BaseRecipe.default(dataclasses.replace(FACTS, num_items=100))
    assert not [key for key in default_space(full).dimensions if key.startswith("sampler")]


def test_every_value_of_the_default_space_is_one_of_a_recipe():
    for num_items in (100, 50_000):
        base = BaseRecipe.default(dataclasses.replace(FACTS, num_items=num_items))
        space = default_space(base)
        values = {key: one.values.examples()[-1] for key, one in space.dimensions.items()}
        assert space.values_of(space.recipe(base, values)) == values
        assert space.values_of(base.config).keys() == space.dimensions.keys()
