"""The base recipe of a search: a recipe of its own, or the default recipe with its rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from candid.config import DataFacts, RunConfig, parse_config, recipe_for, with_values


@dataclass(frozen=True)
class BaseRecipe:
    """The recipe that a search improves.

    Attributes:
        config: the recipe, that of trial 0.
        facts: of the dataset, for the default recipe: its rules choose the other settings of each
            trial, such as the warm-up for the number of steps. None: a recipe of its own, whose
            other keys keep their values.
        changes: dotted keys that replace settings of the default recipe in all trials.

    Example:
        >>> from candid.config import default_recipe
        >>> base = BaseRecipe(default_recipe())
        >>> base.recipe({"training.lr": 0.002}).training.lr
        0.002
    """

    config: RunConfig
    facts: DataFacts | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def default(cls, facts: DataFacts, changes: Mapping[str, Any] | None = None) -> BaseRecipe:
        """Return the default recipe for data as the base.

        Raises:
            ConfigError: a change is wrong.
        """
        changes = dict(changes or {})
        return cls(recipe_for(facts, changes)[0], facts, changes)

    @classmethod
    def of(cls, base: RunConfig | BaseRecipe) -> BaseRecipe:
        """Return a recipe of its own as the base; a base stays as it is."""
        return base if isinstance(base, BaseRecipe) else cls(base)

    def recipe(self, settings: Mapping[str, Any], source: str = "recipe") -> RunConfig:
        """Return the recipe with other values of some keys.

        Args:
            settings: dotted keys with their values.
            source: begins every message.

        Raises:
            ConfigError: the values do not fit together.
        """
        if self.facts is not None:
            return recipe_for(self.facts, {**self.changes, **settings}, source)[0]
        return parse_config(with_values(self.config.model_dump(mode="json"), settings), source)

    def reasons(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that rules chose from the data, by key, with the reason."""
        if self.facts is None:
            return {}
        chosen = recipe_for(self.facts, {**self.changes, **settings})[1]
        return {one.key: one.reason for one in chosen}

    def to_json(self) -> dict[str, Any]:
        """Return the base as plain values; ``changes`` is null for a recipe of its own."""
        return {
            "recipe": self.config.model_dump(mode="json"),
            "changes": None if self.facts is None else dict(self.changes),
        }
