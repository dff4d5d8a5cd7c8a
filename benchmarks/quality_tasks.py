"""Tasks of ``quality.py``: their names, files, settings, and the values of each user."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from candid.config import DataFacts, RunConfig, load_recipe, parse_override, recipe_for
from candid.data import PreparedDataset, open_dataset
from quality_sets import BEST_RECIPE, DEFAULT

RECIPES = Path(__file__).parent / "recipes"
SAME = ("filter_seen", "catalog", "max_users", "seed")
"""Keys of ``evaluation`` that must be equal in a paired comparison."""

ADDED: dict[str, dict[str, Any]] = {
    "training": {"keep": "best", "timeout_seconds": 300.0, "validate_every_steps": None}
}
"""Settings that came after the first measurements, by section: the value that trains as before."""


@dataclass(frozen=True)
class Task:
    """One measurement.

    Attributes:
        set_name: of the set.
        name: "default" or "best" for a recipe; else that of a baseline.
        seed: of the training; None for a baseline.
    """

    set_name: str
    name: str
    seed: int | None = None

    @property
    def key(self) -> str:
        """Name in the results."""
        return "/".join(
            str(part) for part in (self.set_name, self.name, self.seed) if part is not None
        )

    def cell(self, work: Path, digest: str) -> Path:
        """Return the file of the result; ``digest`` is that of the settings."""
        return work / "cells" / f"{self.key.replace('/', '-')}-{digest[:12]}.json"

    def arguments(self) -> list[str]:
        """Return the arguments of this script."""
        if self.seed is None:
            return ["baseline", self.set_name, self.name]
        return ["model", self.set_name, self.name, str(self.seed)]


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        config: of a run.
        chosen: default settings that follow the data: key, value and reason.
        digest: of the settings and the data, without the seed.
    """

    config: RunConfig
    chosen: list[dict[str, Any]]
    digest: str

    @property
    def stored(self) -> dict[str, Any]:
        """The settings as the results contain them, equal for all seeds."""
        table = self.config.model_dump(mode="json")
        return {key: table[key] for key in table if key not in ("name", "seed", "data")}

    @property
    def targets(self) -> dict[str, Any]:
        """The settings that decide which targets are measured, and among which items."""
        return {key: self.stored["evaluation"][key] for key in SAME}


def settings_of(task: Task, dataset: PreparedDataset, overrides: tuple[str, ...] = ()) -> Settings:
    """Return the settings of a run; those of a baseline are the ones of the default recipe."""
    fixed = {"name": task.set_name, "seed": task.seed or 0, "threads": 1}
    chosen: list[dict[str, Any]] = []
    if task.name == BEST_RECIPE:
        lines = [f"{key}={json.dumps(value)}" for key, value in fixed.items()]
        config = load_recipe(recipe_file(task.set_name), [*lines, *overrides])
        config = config.model_copy(update={"data": None})  # the set is prepared already
    else:
        changes = fixed | dict(map(parse_override, overrides))
        config, defaults = recipe_for(facts_of(dataset), changes)
        chosen = [{"key": one.key, "value": one.value, "reason": one.reason} for one in defaults]
    return with_digest(config, chosen, dataset, ("evaluation",) if task.seed is None else ())


def with_digest(
    config: RunConfig,
    chosen: list[dict[str, Any]],
    dataset: PreparedDataset,
    only: tuple[str, ...] = (),
) -> Settings:
    """Return settings with their digest, of the sections ``only``; empty: of all sections."""
    stored = Settings(config, chosen, "").stored
    parts = {key: stored[key] for key in only or stored}
    parts["data"] = dataset.manifest["fingerprint"]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Settings(config, chosen, digest)


def canonical(digest: str, configs: dict[str, Any]) -> str:
    """Return text that is equal for equal settings, whether or not they have the added keys.

    Args:
        digest: of the settings.
        configs: stored settings by digest; those of a baseline are not among them.
    """
    if digest not in configs:
        return digest
    config = {key: _with_added(key, value) for key, value in configs[digest].items()}
    return json.dumps(config, sort_keys=True)


def _with_added(section: str, value: Any) -> Any:
    return ADDED[section] | value if section in ADDED else value


def recipe_file(set_name: str) -> Path:
    """Return the file of the best recipe of a set."""
    return RECIPES / f"{set_name}.toml"


@cache
def _facts_at(path: Path) -> DataFacts:
    return DataFacts.of(open_dataset(path))


def facts_of(dataset: PreparedDataset) -> DataFacts:
    """Return the facts of a dataset, collected once."""
    assert dataset.path is not None
    return _facts_at(dataset.path)


def command_of(task: Task, overrides: tuple[str, ...] = ()) -> list[str]:
    """Return the command of the product that does the same as a measurement."""
    dataset = f"data/{task.set_name}"
    if task.seed is None:
        return ["candid", "baselines", dataset, "--only", task.name]
    recipe = [] if task.name == DEFAULT else [f"benchmarks/recipes/{task.set_name}.toml"]
    sets = [f"seed={task.seed}", "threads=1", *overrides]
    flags = [part for one in sets for part in ("--set", one)]
    return ["candid", "train", *recipe, "--data", dataset, *flags]
