"""Keys and names of earlier recipes: each is refused with its replacement."""

import pytest

from candid.config import describe, parse_config, with_overrides
from candid.config.renamed import RENAMED_KEYS, RENAMED_VALUES, check_renamed
from candid.config.run import RunConfig
from candid.errors import ConfigError

RECIPE = {"name": "x", "loss": {"type": "full_softmax"}}
SAMPLED = RECIPE | {"loss": {"type": "sampled_softmax"}}
DATA = RECIPE | {"data": {"interactions": "log.csv", "time": "at"}}

CASES = {
    "proposal": (RECIPE | {"proposal": {"type": "uniform"}}, "section [proposal] is now [sampler]"),
    "data.action": (
        with_overrides(DATA, ["data.action=kind"]),
        "data.action is now data.event_type",
    ),
    "data.actions": (
        with_overrides(DATA, ["data.actions={ buy = {} }"]),
        "data.actions is now data.event_types",
    ),
    "causal_transformer.read_actions": (
        RECIPE | {"model": {"query_tower": {"read_actions": True}}},
        "model.query_tower.read_actions is now model.query_tower.read_event_types",
    ),
    "popularity.alpha": (
        SAMPLED | {"sampler": {"type": "popularity", "alpha": 0.5}},
        "sampler.alpha is now sampler.exponent",
    ),
    "popularity.floor": (
        SAMPLED
        | {"sampler": {"type": "mixture", "components": [{"type": "popularity", "floor": 1.0}]}},
        "sampler.components.0.floor is now sampler.components.0.min_count",
    ),
    "quadratic.alpha": (
        SAMPLED | {"sampler": {"type": "quadratic", "alpha": 100.0}},
        "sampler.alpha is now sampler.scale",
    ),
    "random_fourier.floor": (
        SAMPLED | {"sampler": {"type": "random_fourier", "floor": 0.1}},
        "sampler.floor is now sampler.kernel_floor",
    ),
    "exact_popular.num_head": (
        SAMPLED | {"sampler": {"type": "exact_popular", "num_head": 5}},
        "sampler.num_head is now sampler.num_exact",
    ),
    "exact_popular.tail": (
        SAMPLED | {"sampler": {"type": "exact_popular", "tail": "uniform"}},
        "sampler.tail is now sampler.rest",
    ),
    "exact_nearest.num_head": (
        SAMPLED | {"sampler": {"type": "exact_nearest", "num_head": 5}},
        "sampler.num_head is now sampler.num_exact",
    ),
    "exact_nearest.tail": (
        SAMPLED | {"sampler": {"type": "exact_nearest", "tail": "uniform"}},
        "sampler.tail is now sampler.rest",
    ),
    "bce.reduction": (
        RECIPE | {"loss": {"type": "bce", "reduction": "mean"}, "sampler": "uniform"},
        "loss.reduction is now loss.row_reduction",
    ),
    "gbce.reduction": (
        RECIPE | {"loss": {"type": "gbce", "reduction": "mean"}, "sampler": "uniform"},
        "loss.reduction is now loss.row_reduction",
    ),
    "training.catalog": (
        RECIPE | {"training": {"catalog": "trained"}},
        "training.catalog is now training.softmax_over",
    ),
    "training.candidate_draws": (
        RECIPE | {"training": {"candidate_draws": 2}},
        "training.candidate_draws is now training.num_groups",
    ),
    "evaluation.bootstrap": (
        RECIPE | {"evaluation": {"bootstrap": 0}},
        "evaluation.bootstrap is now evaluation.intervals",
    ),
    "memory": (
        SAMPLED | {"sampler": {"type": "memory"}},
        'sampler.type = "memory" is now "cross_batch_memory"',
    ),
    "head_and_tail": (
        SAMPLED | {"sampler": "head_and_tail"},
        'sampler = "head_and_tail" is now "exact_popular"',
    ),
    "nearest_head": (
        SAMPLED | {"sampler": {"type": "mixture", "components": ["uniform", "nearest_head"]}},
        'sampler.components.1 = "nearest_head" is now "exact_nearest"',
    ),
    "action": (
        RECIPE | {"features": {"context": {"x": {"type": "categorical", "column": "action"}}}},
        'features.context.x.column = "action" is now "event_type"',
    ),
    "last_action": (
        RECIPE | {"features": {"context": {"x": {"type": "categorical", "column": "last_action"}}}},
        'features.context.x.column = "last_action" is now "last_event_type"',
    ),
}


def test_cases_cover_the_whole_table():
    values = {old for renamed in RENAMED_VALUES.values() for old in renamed}
    assert CASES.keys() == RENAMED_KEYS.keys() | values


@pytest.mark.parametrize("old", CASES)
def test_old_key_is_refused_with_the_new_one(old):
    table, sentence = CASES[old]
    with pytest.raises(ConfigError) as caught:
        parse_config(table, "r.toml")
    assert str(caught.value) == f"r.toml: {sentence}"


def test_new_keys_exist():
    keys = {(key.component, part) for key in describe(RunConfig) for part in key.key.split(".")}
    keys |= {(None, name) for name in RunConfig.model_fields}
    for old, new in RENAMED_KEYS.items():
        owner = old.rpartition(".")[0] or None
        assert {(owner, new), (None, new)} & keys, old


def test_old_names_elsewhere_are_not_refused():
    check_renamed({"data": {"event_types": {"action": {}}, "items": {"attributes": ["memory"]}}})
    check_renamed({"features": {"item": {"action": {"type": "bag", "column": "action"}}}})


@pytest.mark.parametrize("value", [{"a": 1}, [1], 3, None])
def test_type_that_is_not_text_is_refused_in_one_sentence(value):
    recipe = {"name": "a", "loss": {"type": value}}
    with pytest.raises(ConfigError, match="a loss must be a table with a key 'type'"):
        parse_config(recipe, "a.toml")
