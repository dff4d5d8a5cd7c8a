"""The ``[data]`` section of a recipe, read without loading the components of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from candid.component import ComponentConfig
from candid.config.recipe_file import parse_override, read_toml, with_overrides, with_values
from candid.config.schema import validated
from candid.data.config import DataConfig
from candid.data.split_config import settings_of_kind
from candid.errors import ConfigError


class _DataSection(ComponentConfig):
    data: DataConfig


def load_data_config(
    path: Path | str | None, values: Mapping[str, Any], overrides: Sequence[str] = ()
) -> DataConfig:
    """Read the ``[data]`` section of a recipe, or build one from values alone.

    Args:
        path: recipe; None: values and overrides alone.
        values: dotted keys such as ``data.user``, set on top of the recipe. Another
            ``data.split.kind`` leaves out the settings of the recipe that it does not read.
        overrides: ``key=value`` each, set on top of both.

    Raises:
        ConfigError: the file, a value or an override is wrong, or an override is of another
            section.
    """
    for text in overrides:
        key, _ = parse_override(text)
        if key.split(".")[0] != "data":
            raise ConfigError(f"--set {text!r}: only keys of [data] apply to preparing; remove it")
    table = {} if path is None else read_toml(path)
    table = with_values(_of_new_kind(table, values), values)
    table = with_overrides(table, overrides)
    source = "command line" if path is None else str(path)
    if "data" not in table:
        raise ConfigError(f"{source}: no section [data]; add one with the interactions to prepare")
    return validated(_DataSection, {"data": table["data"]}, source).data


def _of_new_kind(table: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out settings of the split that its kind in ``values`` does not read."""
    data, kind = table.get("data"), values.get("data.split.kind")
    split = data.get("split") if isinstance(data, dict) else None
    if kind is None or not isinstance(split, dict) or split.get("kind") == kind:
        return table
    return table | {"data": table["data"] | {"split": settings_of_kind(split, kind)}}
