"""Declarations of a space in TOML or plain values, checked and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from candid.component import toml_value
from candid.config import RunConfig, read_toml
from candid.errors import ConfigError, UnknownNameError
from candid.tuning.base_recipe import BaseRecipe
from candid.tuning.space import Choices, Dimension, Range, Space

RANGE_KEYS: Final = ("low", "high", "log", "step", "also")
CHOICE_KEYS: Final = ("choices", "also")


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
