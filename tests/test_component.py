from typing import Annotated

import pytest
from pydantic import ValidationError

from candid.component import ComponentConfig, Registry, lookup, tagged, type_name
from candid.errors import ConfigError, UnknownNameError

PARTS = Registry({})


class Leaf:
    class Config(ComponentConfig):
        size: int = 3


class Branch:
    class Config(ComponentConfig):
        parts: tuple[Annotated[ComponentConfig, tagged(PARTS, "part")], ...] = ()


PARTS.update(leaf=Leaf, branch=Branch)
Part = Annotated[ComponentConfig, tagged(PARTS, "part")]


class Whole(ComponentConfig):
    part: Part = Leaf.Config()


def test_a_table_a_name_and_a_config_mean_the_same():
    expected = Whole(part=Leaf.Config())
    for value in ({"type": "leaf"}, "leaf", Leaf.Config(), {"type": "leaf", "size": 3}):
        assert Whole.model_validate({"part": value}) == expected


def test_nested_tables_go_there_and_back():
    table = {"type": "branch", "parts": [{"type": "leaf", "size": 5}, {"type": "branch"}]}
    whole = Whole.model_validate({"part": table})
    assert whole.part.parts[0] == Leaf.Config(size=5)
    assert whole.model_dump(mode="json", exclude_defaults=True) == {"part": table}
    assert Whole.model_validate_json(whole.model_dump_json()) == whole


def test_a_wrong_key_is_located_inside_the_table():
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"part": {"type": "branch", "parts": [{"type": "leaf", "sise": 1}]}})
    assert [error["loc"] for error in caught.value.errors()] == [("part", "parts", 0, "sise")]


def test_unknown_types_list_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"unknown part 'leef': did you mean 'leaf'"):
        Whole.model_validate({"part": "leef"})
    with pytest.raises(UnknownNameError, match="branch, leaf"):
        Whole(part=Whole())
    with pytest.raises(UnknownNameError):
        type_name(PARTS, "part", Whole())
    with pytest.raises(UnknownNameError):
        lookup(PARTS, "part", "root")


@pytest.mark.parametrize("value", [3, None, {"size": 3}, {"type": 3}])
def test_a_table_without_a_type_is_refused(value):
    with pytest.raises(ConfigError, match="a part must be a table with a key 'type'"):
        Whole.model_validate({"part": value})


def test_the_json_schema_names_the_types():
    schema = Whole.model_json_schema()["properties"]["part"]
    assert schema["properties"]["type"]["enum"] == ["branch", "leaf"]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_is_refused(value):
    class Rate(ComponentConfig):
        rate: float

    with pytest.raises(ValidationError, match="finite"):
        Rate(rate=value)
