"""Validation and key list of a small schema that is defined in this file."""

import tomllib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, model_validator

from candid.component import ComponentConfig, Registry, tagged, toml_value
from candid.config import ConfigKey, describe, validated
from candid.errors import ConfigError

SHAPES = Registry({})


class Disc:
    class Config(ComponentConfig):
        radius: float = Field(1.0, gt=0, description="half the width")


class Group:
    class Config(ComponentConfig):
        members: tuple[Annotated[ComponentConfig, tagged(SHAPES, "shape")], ...] = Field(
            description="shapes together"
        )


SHAPES.update(disc=Disc, group=Group)


class Ink(ComponentConfig):
    colour: Literal["red", "blue"] = Field("red", description="of the line")
    width: int | None = Field(2, ge=1, description="in points")
    dashes: tuple[float, ...] = Field((), description="lengths")


class Drawing(ComponentConfig):
    sides: ClassVar[int] = 2
    name: str = Field(description="of the file")
    ink: Ink = Field(default_factory=Ink, description="what lines look like")
    frame: Ink | None = Field(None, description="around it all")
    shape: Annotated[ComponentConfig, tagged(SHAPES, "shape")] = Field(
        default_factory=Disc.Config, description="what is drawn"
    )
    layers: dict[str, Annotated[ComponentConfig, tagged(SHAPES, "shape")]] = Field(
        default_factory=dict, description="drawn over it, by name"
    )
    stickers: dict[str, Annotated[ComponentConfig, tagged(SHAPES, "shape")]] = Field(
        default_factory=dict, description="stuck on it"
    )
    verbose: bool = Field(False, description="say more")
    folder: Path | None = Field(None, description="where")

    @model_validator(mode="after")
    def _name_and_folder_differ(self) -> "Drawing":
        if self.folder is not None and self.folder.name == self.name:
            raise ValueError("folder and name must differ")
        return self


def test_describe_lists_every_key_with_type_default_and_meaning():
    assert list(describe(Drawing)) == [
        ConfigKey("name", "text", "required", "of the file"),
        ConfigKey("ink.colour", "red | blue", '"red"', "of the line"),
        ConfigKey("ink.width", "integer", "2", "in points"),
        ConfigKey("ink.dashes", "list of number", "[]", "lengths"),
        ConfigKey("frame.colour", "red | blue", '"red"', "of the line"),
        ConfigKey("frame.width", "integer", "2", "in points"),
        ConfigKey("frame.dashes", "list of number", "[]", "lengths"),
        ConfigKey("shape.type", "disc | group", '"disc"', "what is drawn"),
        ConfigKey("shape.radius", "number", "1", "half the width", "disc"),
        ConfigKey("shape.members.type", "disc | group", "required", "shapes together", "group"),
        ConfigKey("layers.NAME.type", "disc | group", "required", "drawn over it, by name"),
        ConfigKey("layers.NAME.radius", "number", "1", "half the width", "disc"),
        ConfigKey(
            "layers.NAME.members.type", "disc | group", "required", "shapes together", "group"
        ),
        ConfigKey(
            "stickers.NAME.type",
            "disc | group",
            "required",
            "stuck on it; settings as for layers.NAME",
        ),
        ConfigKey("verbose", "true | false", "false", "say more"),
        ConfigKey("folder", "path", "none", "where"),
    ]


def test_validated_config_survives_a_round_trip():
    table = {"name": "a", "ink": {"width": "none"}, "shape": {"type": "disc", "radius": 2}}
    table["layers"] = {"top": "disc", "side": {"type": "group", "members": ["disc"]}}
    drawing = validated(Drawing, table, "d.toml")
    assert drawing.ink.width is None
    assert drawing.shape == Disc.Config(radius=2)
    assert drawing.layers["side"] == Group.Config(members=(Disc.Config(),))
    assert validated(Drawing, drawing.model_dump(mode="json"), "again") == drawing


def test_component_table_without_type_has_the_default_type():
    assert validated(Drawing, {"name": "a", "shape": {"radius": 2}}, "x").shape == Disc.Config(
        radius=2
    )


def test_toml_value_parses_as_toml():
    assert tomllib.loads(f"x = {toml_value({'a': 'b', 'c': [1, True]})}") == {
        "x": {"a": "b", "c": [1, True]}
    }


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({}, "name is missing and has no default; set it"),
        (
            {"nam": "a"},
            "unknown config key 'nam': did you mean 'name'? "
            "known: folder, frame, ink, layers, name, shape, stickers, verbose",
        ),
        (
            {"name": "a", "ink": {"color": "red"}},
            "unknown config key 'ink.color': did you mean 'ink.colour'? "
            "known: ink.colour, ink.dashes, ink.width",
        ),
        (
            {"name": "a", "frame": {"colour": "green"}},
            "frame.colour must be 'red' or 'blue', got \"green\"",
        ),
        (
            {"name": "a", "ink": {"width": 0}},
            "ink.width must be greater than or equal to 1, got 0",
        ),
        (
            {"name": "a", "verbose": "perhaps"},
            'verbose must be a valid boolean, got "perhaps"',
        ),
        (
            {"name": "a", "shape": {"type": "disk"}},
            "unknown shape 'disk': did you mean 'disc'? known: disc, group",
        ),
        (
            {"name": "a", "shape": {"type": "disc", "radus": 1}},
            "unknown config key 'shape.radus': did you mean 'shape.radius'? known: shape.radius",
        ),
        (
            {
                "name": "a",
                "shape": {"type": "group", "members": ["disc", {"type": "disc", "r": 1}]},
            },
            "unknown config key 'shape.members.1.r': did you mean 'shape.members.1.radius'? "
            "known: shape.members.1.radius",
        ),
        (
            {"name": "a", "shape": {"type": "group", "members": [{"radius": 1}]}},
            "a shape must be a table with a key 'type', one of: disc, group; got {'radius': 1}",
        ),
        (
            {"name": "a", "shape": {"radus": 1}},
            "unknown config key 'shape.radus': did you mean 'shape.radius'? known: shape.radius",
        ),
        (
            {"name": "a", "layers": {"top": {"type": "disc", "r": 1}}},
            "unknown config key 'layers.top.r': did you mean 'layers.top.radius'? "
            "known: layers.top.radius",
        ),
        (
            {"name": "a", "layers": {"top": {"radius": 1}}},
            "a shape must be a table with a key 'type', one of: disc, group; got {'radius': 1}",
        ),
        (
            {"name": "a", "layers": {"top": {"type": "disc", "radius": -1}}},
            "layers.top.radius must be greater than 0, got -1",
        ),
        (
            {"name": "a", "ink": {"dashes": 1}},
            "ink.dashes must be a valid list, got 1",
        ),
        ({"name": "a", "folder": "/x/a"}, "folder and name must differ"),
    ],
)
def test_error_of_a_wrong_table_names_source_key_and_fix(table, sentence):
    with pytest.raises(ConfigError) as caught:
        validated(Drawing, table, "d.toml")
    assert str(caught.value) == f"d.toml: {sentence}"
