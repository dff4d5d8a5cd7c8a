"""The configuration of a run: TOML in, one typed object or one clear sentence out."""

from candid.config.recipe_file import parse_override, read_toml, with_overrides, with_values
from candid.config.run import (
    DEFAULT_RECIPE,
    RunConfig,
    default_recipe,
    load_data_config,
    load_recipe,
    override_evaluation,
    parse_config,
)
from candid.config.schema import ConfigKey, describe, validated

__all__ = [
    "DEFAULT_RECIPE",
    "ConfigKey",
    "RunConfig",
    "default_recipe",
    "describe",
    "load_data_config",
    "load_recipe",
    "override_evaluation",
    "parse_config",
    "parse_override",
    "read_toml",
    "validated",
    "with_overrides",
    "with_values",
]
