"""The default space of a recipe: its most important settings, with ranges around their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from candid.config import DataFacts, RunConfig
from candid.errors import ConfigError
from candid.tuning.base_recipe import BaseRecipe
from candid.tuning.space import DIGITS, Choices, Dimension, Range, Space, value_at

LONG_HISTORIES: Final = 0.2
"""Share of the targets beyond a quarter of the longest window from which its length matters."""


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
