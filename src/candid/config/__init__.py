"""The configuration of a run: a TOML recipe in, one typed object or one error sentence out.

Modules load on first use: ``load_data_config`` works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from candid.config.data_facts import DataFacts
    from candid.config.data_section import load_data_config
    from candid.config.defaults import DEFAULT_RECIPE, Default
    from candid.config.recipe_file import parse_override, read_toml, with_overrides, with_values
    from candid.config.recipe_writer import recipe_text
    from candid.config.run import (
        RunConfig,
        default_recipe,
        load_recipe,
        override_evaluation,
        parse_config,
        recipe_for,
    )
    from candid.config.schema import ConfigKey, describe, validated
    from candid.config.sections import SECTIONS

__all__ = [
    "DEFAULT_RECIPE",
    "SECTIONS",
    "ConfigKey",
    "DataFacts",
    "Default",
    "RunConfig",
    "default_recipe",
    "describe",
    "load_data_config",
    "load_recipe",
    "override_evaluation",
    "parse_config",
    "parse_override",
    "read_toml",
    "recipe_for",
    "recipe_text",
    "validated",
    "with_overrides",
    "with_values",
]

_MODULES = {
    "data_section": ("load_data_config",),
    "recipe_file": ("parse_override", "read_toml", "with_overrides", "with_values"),
    "data_facts": ("DataFacts",),
    "defaults": ("DEFAULT_RECIPE", "Default"),
    "recipe_writer": ("recipe_text",),
    "run": (
        "RunConfig",
        "default_recipe",
        "load_recipe",
        "override_evaluation",
        "parse_config",
        "recipe_for",
    ),
    "schema": ("ConfigKey", "describe", "validated"),
    "sections": ("SECTIONS",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"candid.config.{module}"), name)
    raise AttributeError(f"module 'candid.config' has no attribute {name!r}")
