"""The space of a search: keys of a recipe, each with a range or a list of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from candid.config import RunConfig
from candid.errors import ConfigError
from candid.tuning.base_recipe import BaseRecipe

DIGITS: Final = 3
"""Significant digits of a value from a range: a recipe then shows the exact value."""

FIXED: Final = {
    "name": "it names the run",
    "seed": "all trials have the seed of the base recipe",
    "device": "it does not change the model",
    "threads": "it does not change the model",
    "data": "all trials have the dataset of --data",
    "evaluation": "all trials are compared by the same measurement",
}
"""First part of the keys that a search never changes -> the reason."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two bounds, both included.

    Attributes:
        low: smallest value.
        high: largest value.
        log: whether the logarithm is uniform instead of the value.
        step: distance of neighbouring values; None: any number (1 for integers).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_integer(self) -> bool:
        """Whether both bounds, and the step if there is one, are integers."""
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    def examples(self) -> tuple[Any, ...]:
        """Return the values that are checked before a search: the bounds."""
        return self.low, self.high

    def rounded(self, value: float) -> float:
        """Return a value with few digits, within the bounds."""
        if self.is_integer:
            return int(value)
        digits = 10 if self.step is not None else DIGITS
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    def contains(self, value: Any) -> bool:
        """Whether the range has ``value``."""
        if isinstance(value, bool) or not isinstance(
            value, int if self.is_integer else int | float
        ):
            return False
        if not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        steps = (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-8

    def to_json(self) -> dict[str, Any]:
        """Return the declaration as plain values."""
        table: dict[str, Any] = {"low": self.low, "high": self.high}
        return (
            table
            | ({"log": True} if self.log else {})
            | ({} if self.step is None else {"step": self.step})
        )


@dataclass(frozen=True, slots=True)
class Choices:
    """A list of values, without an order.

    Attributes:
        values: plain values; tables and lists too.
    """

    values: tuple[Any, ...]

    def examples(self) -> tuple[Any, ...]:
        """Return the values that are checked before a search: all."""
        return self.values

    def contains(self, value: Any) -> bool:
        """Whether ``value`` is one of the values."""
        return value in self.values

    def to_json(self) -> dict[str, Any]:
        """Return the declaration as plain values."""
        return {"choices": list(self.values)}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One key of a space.

    Attributes:
        key: dotted key of a recipe.
        values: the values to choose from.
        also: further keys that get the same value.
    """

    key: str
    values: Range | Choices
    also: tuple[str, ...] = ()

    def settings(self, value: Any) -> dict[str, Any]:
        """Return the keys of a recipe that a value sets."""
        return dict.fromkeys((self.key, *self.also), value)


@dataclass(frozen=True, slots=True)
class Space:
    """The keys of a search with their values.

    Attributes:
        dimensions: by key.
        source: where the space is declared; begins every message.
    """

    dimensions: Mapping[str, Dimension]
    source: str = field(default="the default space", compare=False)

    def recipe(self, base: RunConfig | BaseRecipe, values: Mapping[str, Any]) -> RunConfig:
        """Return a base recipe with the values of a trial.

        Args:
            base: recipe of the search.
            values: by key of the space; keys that are absent keep the value of the base.

        Raises:
            ConfigError: the values do not fit together.
        """
        return BaseRecipe.of(base).recipe(self.settings(values), self.source)

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of a recipe that the values of a trial set."""
        settings: dict[str, Any] = {}
        for key, value in values.items():
            settings |= self.dimensions[key].settings(value)
        return settings

    def values_of(self, config: RunConfig) -> dict[str, Any]:
        """Return the values that a recipe has for the keys of the space and the space contains."""
        table = config.model_dump(mode="json")
        values = {}
        for key, dimension in self.dimensions.items():
            value = value_at(table, key)
            if dimension.values.contains(value):
                values[key] = value
        return values

    def check(self, base: RunConfig | BaseRecipe) -> None:
        """Refuse keys and values that the base recipe cannot have.

        Raises:
            ConfigError: one sentence with the file, the key and the reason.
        """
        for key, dimension in self.dimensions.items():
            for name in (key, *dimension.also):
                if (reason := FIXED.get(name.partition(".")[0])) is not None:
                    raise ConfigError(
                        f"{self.source}: {name} cannot be searched, because {reason}; remove it"
                    )
            for value in dimension.values.examples():
                self.recipe(base, {key: value})

    def to_json(self) -> dict[str, Any]:
        """Return the declaration of each key as plain values."""
        return {
            key: one.values.to_json() | ({"also": list(one.also)} if one.also else {})
            for key, one in self.dimensions.items()
        }


def value_at(table: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or None."""
    value: Any = table
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
