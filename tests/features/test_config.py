"""The features section of a recipe."""

import pydantic
import pytest

from candid.errors import ConfigError, UnknownNameError
from candid.features import Bag, FeaturesConfig, Number

TABLE = {"item": {"genres": {"type": "bag", "min_count": 3}, "year": "number"}}


def test_features_survive_a_round_trip():
    config = FeaturesConfig.model_validate(TABLE)
    assert list(config.item) == ["genres", "year"]
    assert config.item["genres"] == Bag.Config(min_count=3)
    assert config.item["year"] == Number.Config()
    assert config.model_dump(exclude_defaults=True)["item"] == {
        "genres": {"type": "bag", "min_count": 3},
        "year": {"type": "number"},
    }
    assert FeaturesConfig.model_validate(config.model_dump(mode="json")) == config


def test_is_empty_without_any_feature():
    assert FeaturesConfig().is_empty
    assert not FeaturesConfig.model_validate(TABLE).is_empty
    assert not FeaturesConfig.model_validate({"user": {"age": "categorical"}}).is_empty


@pytest.mark.parametrize("name", ["a.b", "", "a b", "é", "a-b", 3])
def test_feature_name_with_other_characters_is_refused(name):
    with pytest.raises(pydantic.ValidationError, match="letters, digits and underscores"):
        FeaturesConfig.model_validate({"user": {name: "number"}})


def test_unknown_types_and_keys_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'number'"):
        FeaturesConfig.model_validate({"item": {"year": "numbers"}})
    with pytest.raises(pydantic.ValidationError, match="min_cont"):
        FeaturesConfig.model_validate({"item": {"year": {"type": "bag", "min_cont": 1}}})
    with pytest.raises(ConfigError, match="'type'"):
        FeaturesConfig.model_validate({"item": {"year": {"min_count": 1}}})
