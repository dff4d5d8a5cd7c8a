"""Variants of the default recipe for ``default_parts.py``: their keys, length and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from candid.config import RunConfig, parse_config, recipe_for, with_values
from candid.data import PreparedDataset
from measurement_runs import file_name
from quality_tasks import Settings, facts_of, with_digest

SETS = (
    "ml-100k",
    "ml-1m",
    "ml-1m-temporal",
    "amazon-beauty",
    "nowplaying",
    "retailrocket",
    "diginetica",
)
"""Names of sets of ``quality_sets.py``."""
DEFAULT = "default"


@dataclass(frozen=True)
class Width:
    """A width as a multiple of ``query_tower.dim`` of the default recipe."""

    factor: float

    def __str__(self) -> str:
        return "dim" if self.factor == 1 else f"{self.factor:g} × dim"


@dataclass(frozen=True)
class Variant:
    """A change of the default recipe.

    Attributes:
        meaning: what is other than in the default recipe, as a phrase.
        keys: dotted keys of a recipe; None takes a key away.
        needs_sampler: whether it changes the sampler, which the recipe must have.
    """

    meaning: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    needs_sampler: bool = False

    def values(self, base: RunConfig) -> dict[str, Any]:
        """Return the keys with the values that they have over a config."""
        dim = base.model.query_tower.dim
        return {
            key: int(value.factor * dim) if isinstance(value, Width) else value
            for key, value in self.keys.items()
        }


def _candidates(number: int) -> dict[str, Any]:
    """Return the keys of a sampler with as many popularity as uniform samples."""
    kinds = ("popularity", "uniform")
    return {"sampler.components": [{"type": kind, "num_candidates": number} for kind in kinds]}


TOWER = "model.query_tower"
LIGR = {f"{TOWER}.gated_residual": True, f"{TOWER}.feed_forward": "swiglu"}
VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant("the default recipe"),
    "initial random": Variant(
        "item vectors start at random", {"model.item_tower.initial": "random"}
    ),
    "dot": Variant(
        "dot products instead of the cosine", {"model.similarity": "dot", "model.temperature": 1.0}
    ),
    "learned positions": Variant(
        "a trained vector for each position", {f"{TOWER}.positions": "learned"}
    ),
    "no times": Variant(
        "time gaps are not read", {f"{TOWER}.read_time_gaps": False, f"{TOWER}.time_bias": False}
    ),
    "no query gap": Variant(
        "the time from the last interaction to the query is not read",
        {f"{TOWER}.read_query_gap": False},
    ),
    "ligr": Variant(
        "gated residuals and a wide SwiGLU layer", LIGR | {f"{TOWER}.hidden": Width(4)}
    ),
    "ligr, small": Variant(
        "gated residuals and a SwiGLU layer", LIGR | {f"{TOWER}.hidden": Width(1)}
    ),
    "narrow": Variant(
        "half the width of the vectors",
        {f"{TOWER}.dim": Width(0.5), "model.item_tower.dim": Width(0.5)},
    ),
    "separate items": Variant(
        "items of histories have their own vectors", {f"{TOWER}.input_items": "separate"}
    ),
    "no mean of weights": Variant(
        "the last weights instead of a running mean", {"training.average": None}
    ),
    "1,024 candidates": Variant("fewer candidates", _candidates(512), needs_sampler=True),
}


@dataclass(frozen=True)
class CostTask:
    """Measurement of the CPU seconds of the steps of all variants on a set."""

    set_name: str

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{self.set_name}/costs"

    def cell(self, work: Path, digest: str) -> Path:
        """Return the file of the result; ``digest`` is that of the default recipe."""
        return work / "cells" / f"{file_name(self.key)}-{digest[:12]}.json"


@dataclass(frozen=True)
class RunTask:
    """Training of a variant.

    Attributes:
        set_name: of the set.
        share: of the length of the default recipe.
        variant: its name.
        rate: factor of the learning rate.
        seed: of the training.
    """

    set_name: str
    share: float
    variant: str
    rate: float
    seed: int

    @property
    def base_key(self) -> str:
        """Name of the default recipe of this length in the results."""
        return base_key(self.set_name, self.share)

    @property
    def key(self) -> str:
        """Name in the results."""
        return f"{self.base_key}/{self.variant}/{self.rate:g}/{self.seed}"

    def cell(self, work: Path, digest: str) -> Path:
        """Return the file of the result; ``digest`` is that of the settings."""
        return work / "cells" / f"{file_name(self.key)}-{digest[:12]}.json"


def base_key(set_name: str, share: float) -> str:
    """Return the name of a set with a length in the results."""
    return f"{set_name}/{share:g}"


def length_keys(steps: int, num_batches: int) -> dict[str, Any]:
    """Return the keys of a training of ``steps`` steps, ``num_batches`` an epoch."""
    return {
        "training.epochs": -(-steps // num_batches),
        "training.max_steps": steps if steps % num_batches else None,
    }


def base_settings(dataset: PreparedDataset, length: Mapping[str, Any]) -> Settings:
    """Return the default recipe of the product, of a length; an empty one is its own length."""
    fixed = {"name": "default", "threads": 1}
    config, chosen = recipe_for(facts_of(dataset), fixed | dict(length))
    reasons = [{"key": one.key, "value": one.value, "reason": one.reason} for one in chosen]
    return with_digest(config, reasons, dataset)


def base_steps(full: RunConfig, num_batches: int, share: float) -> int:
    """Return the steps of a share of the epochs of the default recipe."""
    return max(1, round(share * full.training.epochs * num_batches))


def config_of(
    base: RunConfig, variant: str, length: Mapping[str, Any], *, rate: float = 1, seed: int = 0
) -> RunConfig:
    """Return a variant of the default recipe; ``rate`` is a factor of its learning rate."""
    values = VARIANTS[variant].values(base) | dict(length) | {"seed": seed}
    config = parse_config(with_values(base.model_dump(mode="json"), values), "default parts")
    if rate == 1:
        return config
    table = with_values(config.model_dump(mode="json"), {"training.lr": rate * config.training.lr})
    return parse_config(table, "default parts")


def variants_of(base: RunConfig) -> dict[str, RunConfig]:
    """Return the variants that differ from the default recipe of a set, and the recipe first."""
    found = {DEFAULT: base}
    for name, variant in VARIANTS.items():
        if variant.needs_sampler and base.sampler is None:
            continue
        config = config_of(base, name, {}, seed=base.seed)
        if config != base:
            found[name] = config
    return found


def steps_of(variant: str, costs: Mapping[str, Any], steps: int) -> int:
    """Return the steps of a variant for the CPU seconds of ``steps`` steps of the default recipe.

    The start of the item vectors counts too.
    """
    seconds, start = costs["seconds"], costs["start"]
    budget = start[DEFAULT] + steps * seconds[DEFAULT]
    return max(1, round((budget - start[variant]) / seconds[variant]))


def run_settings(
    task: RunTask, dataset: PreparedDataset, costs: Mapping[str, Any]
) -> tuple[Settings, Settings]:
    """Return the settings of the default recipe of the task's length, and those of the task."""
    num_batches = costs["num_batches"]
    full = base_settings(dataset, {})
    steps = base_steps(full.config, num_batches, task.share)
    base = full
    if steps != full.config.training.epochs * num_batches:
        base = base_settings(dataset, length_keys(steps, num_batches))
    length = length_keys(steps_of(task.variant, costs, steps), num_batches)
    config = config_of(base.config, task.variant, length, rate=task.rate, seed=task.seed)
    return base, with_digest(config, [], dataset)
