"""The schema walk, on a schema of its own so that every expected value is in sight."""

import tomllib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, model_validator

from candid.component import ComponentConfig, Registry, tagged
from candid.config import ConfigKey, describe, validated
from candid.config.schema import toml_value
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


class CandidateSource(ComponentConfig):
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
    def _name_and_folder_differ(self) -> "CandidateSource":
        if self.folder is not None and self.folder.name == self.name:
            raise ValueError("folder and name must differ")
        return self


def test_every_key_is_listed_with_type_default_and_meaning():
    assert list(describe(CandidateSource)) == [
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


def test_a_good_table_becomes_a_config_and_back():
    table = {"name": "a", "ink": {"width": "none"}, "shape": {"type": "disc", "radius": 2}}
    table["layers"] = {"top": "disc", "side": {"type": "group", "members": ["disc"]}}
    drawing = validated(CandidateSource, table, "d.toml")
    assert drawing.ink.width is None
    assert drawing.shape == Disc.Config(radius=2)
    assert drawing.layers["side"] == Group.Config(members=(Disc.Config(),))
    assert validated(CandidateSource, drawing.model_dump(mode="json"), "again") == drawing


def test_a_component_without_a_type_has_that_of_the_default():
    assert validated(
        CandidateSource, {"name": "a", "shape": {"radius": 2}}, "x"
    ).shape == Disc.Config(radius=2)


def test_a_default_is_written_as_toml():
    assert tomllib.loads(f"x = {toml_value({'a': 'b', 'c': [1, True]})}") == {
        "x": {"a": "b", "c": [1, True]}
    }


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({}, "name is missing: it has no default, so the recipe must give it"),
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
            "frame.colour is \"green\", but should be 'red' or 'blue'",
        ),
        (
            {"name": "a", "ink": {"width": 0}},
            "ink.width is 0, but should be greater than or equal to 1",
        ),
        (
            {"name": "a", "verbose": "perhaps"},
            'verbose is "perhaps", but should be a valid boolean',
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
            "layers.top.radius is -1, but should be greater than 0",
        ),
        (
            {"name": "a", "ink": {"dashes": 1}},
            "ink.dashes is 1, but should be a valid list",
        ),
        ({"name": "a", "folder": "/x/a"}, "folder and name must differ"),
    ],
)
def test_a_wrong_table_is_one_sentence_with_source_key_and_cure(table, sentence):
    with pytest.raises(ConfigError) as caught:
        validated(CandidateSource, table, "d.toml")
    assert str(caught.value) == f"d.toml: {sentence}"
