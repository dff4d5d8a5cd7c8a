"""Recipes as text: they read back as the same config, with the reasons as comments."""

import tomllib

import pytest

from candid.config import DataFacts, parse_config, recipe_for, recipe_text

FACTS = {
    "small": DataFacts(True, True, 7, 3, 40, 0.5, 50),
    "large": DataFacts(True, False, 10**6, 10**6, 10**7, 0.0, 10**7),
    "unordered": DataFacts(False, False, 10**5, 10**6, 10**6, 0.0, 10**6),
}


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize(
    "changes", [{}, {"training.patience": None, "threads": 2, "seed": 9}, {"loss": {"type": "bce"}}]
)
def test_text_reads_back_as_the_same_config(name, changes):
    config, chosen = recipe_for(FACTS[name], changes)
    text = recipe_text(config, {one.key: one.reason for one in chosen}, ["a", "", "b"])
    assert text.startswith("# a\n#\n# b\nname = ")
    assert parse_config(tomllib.loads(text), "text") == config


def test_reason_is_above_its_key():
    config, chosen = recipe_for(FACTS["large"])
    lines = recipe_text(config, {one.key: one.reason for one in chosen}).splitlines()
    place = lines.index("batch_size = 128")  # shown although it is the default of the key
    assert lines[place - 1] == "# 1,000,000 histories are 7,813 steps an epoch"


def test_long_reasons_are_wrapped():
    config, _ = recipe_for(FACTS["large"])
    text = recipe_text(config, {"training.lr": "word " * 60})
    assert max(map(len, text.splitlines())) <= 100
    assert parse_config(tomllib.loads(text), "text") == config
