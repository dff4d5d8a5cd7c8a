"""The space of a search: keys of a recipe, each with a range or a list of values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from candid.component import toml_value
from candid.config import DataFacts, RunConfig, read_toml
from candid.errors import ConfigError, UnknownNameError
from candid.tuning.base_recipe import BaseRecipe

DIGITS: Final = 3
"""Significant digits of a value from a range: a recipe then shows the exact value."""

RANGE_KEYS: Final = ("low", "high", "log", "step", "also")
CHOICE_KEYS: Final = ("choices", "also")

LONG_HISTORIES: Final = 0.2
"""Share of the targets beyond a quarter of the longest window from which its length matters."""

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


def read_space(path: Path | str, base: RunConfig | BaseRecipe) -> Space:
    """Read a space from the section [space] of a TOML file.

    Each dotted key of a recipe has ``{ low, high }``, with ``log = true`` or a ``step``, or
    ``{ choices = [...] }``. Integer bounds give integers. ``also = [...]`` names keys that get the
    same value.

    Args:
        path: the file.
        base: recipe that the space changes.

    Raises:
        ConfigError: the file, a key or a declaration is wrong; the message names it.
    """
    table = read_toml(path)
    if unknown := sorted(table.keys() - {"space"}):
        raise ConfigError(f"{path}: {UnknownNameError('section', unknown[0], ['space'])}")
    if not isinstance(table.get("space"), Mapping) or not table["space"]:
        raise ConfigError(
            f"{path} declares no space; add a section [space] with keys such as "
            "training.lr = { low = 1e-4, high = 1e-2, log = true }"
        )
    source = f"{path}: [space]"
    return parse_space(table["space"], base, source)


def parse_space(
    table: Mapping[str, Any], base: RunConfig | BaseRecipe, source: str = "space"
) -> Space:
    """Build a space from plain values, as ``read_space`` does from a file.

    Args:
        table: dotted or nested keys with their declarations.
        base: recipe that the space changes.
        source: begins every message.

    Raises:
        ConfigError: a key or a declaration is wrong.

    Example:
        >>> from candid.config import default_recipe
        >>> space = parse_space({"training.lr": {"low": 1e-4, "high": 1e-2}}, default_recipe())
        >>> list(space.dimensions)
        ['training.lr']
    """
    dimensions = {
        key: _dimension(key, declaration, source) for key, declaration in _leaves(table, source)
    }
    space = Space(dimensions, source)
    _check_unique(space)
    space.check(base)
    return space


def default_space(base: RunConfig | BaseRecipe) -> Space:
    """Return the space that suits a recipe: the settings that change a model most.

    The ranges lie around the values of the recipe. Keys that the recipe does not have, or whose
    values do not fit it, are left out.
    """
    base = BaseRecipe.of(base)
    table = base.config.model_dump(mode="json")
    dimensions: dict[str, Dimension] = {}
    for dimension in _default_dimensions(table, base.facts):
        try:
            Space({dimension.key: dimension}).check(base)
        except ConfigError:
            continue  # such as a width that the recipe's number of heads does not divide
        dimensions[dimension.key] = dimension
    return Space(dimensions)


def value_at(table: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or None."""
    value: Any = table
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _default_dimensions(table: Mapping[str, Any], facts: DataFacts | None) -> Iterator[Dimension]:
    """Yield few keys: a search of tens of trials learns little of more.

    Each one changes how much a model fits (width, depth, dropout or weight decay), how it is
    optimised (learning rate, batch), or what it is shown (windows, candidates).
    """
    lr, size = table["training"]["lr"], table["batches"]["batch_size"]
    yield Dimension("training.lr", Range(_short(lr / 5), _short(lr * 5), log=True))
    yield Dimension("batches.batch_size", _around(size))
    query = "model.query_tower"
    dim, blocks = value_at(table, f"{query}.dim"), value_at(table, f"{query}.num_blocks")
    if isinstance(dim, int):
        has_both = value_at(table, "model.item_tower.dim") == dim
        also = ("model.item_tower.dim",) if has_both else ()
        yield Dimension(f"{query}.dim", _around(dim), also)
    if isinstance(blocks, int):
        yield Dimension(f"{query}.num_blocks", Range(max(blocks - 1, 1), blocks + 1))
    if isinstance(value_at(table, f"{query}.dropout"), float | int):
        yield Dimension(f"{query}.dropout", Range(0.0, 0.6, step=0.1))
    else:  # the tower has no other regularisation
        yield Dimension("training.weight_decay", Choices((0.0, 1e-4, 1e-3, 1e-2, 1e-1)))
    length = table["batches"]["max_length"]
    if facts is not None and facts.share_of_late_targets(length // 4) >= LONG_HISTORIES:
        yield Dimension("batches.max_length", Choices((length // 4, length // 2, length)))
    yield from _numbers_of_candidates(table)


def _numbers_of_candidates(table: Mapping[str, Any]) -> Iterator[Dimension]:
    """Yield the number of candidates of a sampled loss: half, equal or double."""
    number, parts = (value_at(table, f"sampler.{key}") for key in ("num_candidates", "components"))
    if isinstance(number, int):
        yield Dimension("sampler.num_candidates", _around(number))
    elif isinstance(parts, list) and all(value_at(one, "num_candidates") for one in parts):
        lists = [
            [{**one, "num_candidates": max(int(one["num_candidates"] * f), 1)} for one in parts]
            for f in (0.5, 1, 2)
        ]
        yield Dimension("sampler.components", Choices(tuple(lists)))


def _around(number: int) -> Choices:
    return Choices(tuple(dict.fromkeys((max(number // 2, 1), number, 2 * number))))


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _leaves(table: Mapping[str, Any], source: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the declarations of nested tables with dotted keys."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{source}: {key} must be {{ low, high }} or {{ choices = [...] }}, "
                f"got {toml_value(value)}"
            )
        # TOML reads a dotted key as nested tables; a declaration has no table inside.
        if value and all(isinstance(inner, Mapping) for inner in value.values()):
            yield from _leaves(value, source, f"{key}.")
        else:
            yield key, value


def _dimension(key: str, table: Mapping[str, Any], source: str) -> Dimension:
    known = CHOICE_KEYS if "choices" in table else RANGE_KEYS
    if unknown := sorted(table.keys() - set(known)):
        names = sorted({*RANGE_KEYS, *CHOICE_KEYS})
        if unknown[0] not in names:
            raise ConfigError(f"{source}: {key}: {UnknownNameError('key', unknown[0], names)}")
        raise ConfigError(f"{source}: {key} has choices and {unknown[0]}; remove one of the two")
    also = table.get("also", [])
    if not isinstance(also, list) or not all(isinstance(one, str) for one in also):
        raise ConfigError(f"{source}: {key}: also must be a list of keys, got {toml_value(also)}")
    values = _choices if "choices" in table else _range
    return Dimension(key, values(key, table, source), tuple(also))


def _choices(key: str, table: Mapping[str, Any], source: str) -> Choices:
    values = table["choices"]
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or len(values) < 2:
        raise ConfigError(
            f"{source}: {key}: choices must be a list of at least two values, "
            f"got {toml_value(values)}"
        )
    if any(value in values[:position] for position, value in enumerate(values)):
        raise ConfigError(f"{source}: {key}: choices has a value twice; remove one of them")
    return Choices(tuple(values))


def _range(key: str, table: Mapping[str, Any], source: str) -> Range:
    for name in ("low", "high"):
        if name not in table:
            raise ConfigError(
                f"{source}: {key} has no {name}; write {{ low, high }} or {{ choices = [...] }}"
            )
    log, step = table.get("log", False), table.get("step")
    for name in ("low", "high", *(("step",) if step is not None else ())):
        value = table[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) < float("inf"):
            raise ConfigError(f"{source}: {key}: {name} must be a number, got {toml_value(value)}")
    if not isinstance(log, bool):
        raise ConfigError(f"{source}: {key}: log must be true or false, got {toml_value(log)}")
    low, high = table["low"], table["high"]
    problem = None
    if low >= high:
        problem = f"low {toml_value(low)} must be below high {toml_value(high)}"
    elif log and low <= 0:
        problem = f"log needs a low above 0, got {toml_value(low)}"
    elif step is not None and log:
        problem = "log and step cannot be combined; remove one of the two"
    elif step is not None and not 0 < step <= high - low:
        problem = f"step must be above 0 and at most high - low, got {toml_value(step)}"
    if problem is not None:
        raise ConfigError(f"{source}: {key}: {problem}")
    return Range(low, high, log, step)


def _check_unique(space: Space) -> None:
    """Refuse keys that are set twice, or that lie inside another key of the space."""
    owners: dict[str, str] = {}
    for key, dimension in space.dimensions.items():
        for name in (key, *dimension.also):
            for other in owners:
                if (
                    name == other
                    or f"{name}.".startswith(f"{other}.")
                    or f"{other}.".startswith(f"{name}.")
                ):
                    raise ConfigError(
                        f"{space.source}: {name} and {other} set the same part of the recipe; "
                        "remove one of them"
                    )
            owners[name] = key
