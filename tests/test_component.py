import importlib
import sys
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


def test_component_field_accepts_a_table_a_name_and_a_config():
    expected = Whole(part=Leaf.Config())
    for value in ({"type": "leaf"}, "leaf", Leaf.Config(), {"type": "leaf", "size": 3}):
        assert Whole.model_validate({"part": value}) == expected


def test_nested_tables_survive_a_round_trip():
    table = {"type": "branch", "parts": [{"type": "leaf", "size": 5}, {"type": "branch"}]}
    whole = Whole.model_validate({"part": table})
    assert whole.part.parts[0] == Leaf.Config(size=5)
    assert whole.model_dump(mode="json", exclude_defaults=True) == {"part": table}
    assert Whole.model_validate_json(whole.model_dump_json()) == whole


def test_validation_error_locates_a_wrong_key_of_a_nested_table():
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"part": {"type": "branch", "parts": [{"type": "leaf", "sise": 1}]}})
    assert [error["loc"] for error in caught.value.errors()] == [("part", "parts", 0, "sise")]


def test_unknown_type_error_lists_the_known_types():
    with pytest.raises(UnknownNameError, match=r"unknown part 'leef': did you mean 'leaf'"):
        Whole.model_validate({"part": "leef"})
    with pytest.raises(UnknownNameError, match="branch, leaf"):
        Whole(part=Whole())
    with pytest.raises(UnknownNameError):
        type_name(PARTS, "part", Whole())
    with pytest.raises(UnknownNameError):
        lookup(PARTS, "part", "root")


@pytest.mark.parametrize("value", [3, None, {"size": 3}, {"type": 3}])
def test_component_field_refuses_a_table_without_a_type(value):
    with pytest.raises(ConfigError, match="a part must be a table with a key 'type'"):
        Whole.model_validate({"part": value})


def test_json_schema_lists_the_types():
    schema = Whole.model_json_schema()["properties"]["part"]
    assert schema["properties"]["type"]["enum"] == ["branch", "leaf"]


class Rate(ComponentConfig):
    rate: float = 1.0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_config_refuses_numbers_that_are_not_finite(value):
    with pytest.raises(ConfigError, match=r"^Rate: rate must be a finite number, got "):
        Rate(rate=value)


def test_config_constructor_explains_a_wrong_keyword():
    with pytest.raises(ConfigError) as caught:
        Rate(rat=2.0)
    assert str(caught.value) == "Rate: unknown config key 'rat': did you mean 'rate'? known: rate"


def test_config_constructor_explains_a_wrong_key_of_a_nested_component():
    with pytest.raises(ConfigError) as caught:
        Whole(part={"type": "leaf", "size": "big"})
    assert str(caught.value) == 'Whole: part.size must be a valid integer, got "big"'


def test_registry_imports_a_component_on_first_use(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_shapes.py").write_text("class Ring:\n    Config = None\n")
    registry = Registry({"leaf": Leaf, "ring": "late_shapes:Ring"})
    assert sorted(registry) == ["leaf", "ring"]
    assert type_name(registry, "part", Leaf.Config()) == "leaf"
    assert "late_shapes" not in sys.modules
    assert registry["ring"].__name__ == "Ring"
    assert "late_shapes" in sys.modules


def test_registry_finds_a_config_that_was_built_before_its_component_was_imported(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_config.py").write_text(
        "from candid.component import ComponentConfig\nclass Config(ComponentConfig): pass\n"
    )
    (tmp_path / "late_owner.py").write_text(
        "import late_config\nclass Owner:\n    Config = late_config.Config\n"
    )
    registry = Registry({"owner": "late_owner:Owner", "leaf": Leaf})
    config = importlib.import_module("late_config").Config()
    assert type_name(registry, "part", config) == "owner"
