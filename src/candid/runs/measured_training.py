"""Training with measurement: ``candid.train``, from a dataset and a recipe to a measured run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from candid.config import (
    DataFacts,
    RunConfig,
    parse_config,
    read_toml,
    recipe_for,
    with_values,
)
from candid.data import PreparedDataset, as_dataset
from candid.errors import ConfigError
from candid.runs.folder import read_manifest
from candid.runs.load import load_run
from candid.runs.measurement import has_test_split, measure_on_test
from candid.runs.run import Run
from candid.runs.training import train_run


def train(
    data: PreparedDataset | Path | str,
    recipe: RunConfig | Mapping[str, Any] | Path | str | None = None,
    *,
    out: Path | str,
    init: Run | Path | str | None = None,
    resume: bool = False,
    refit: bool = False,
    measure: bool = True,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Train a model, measure it beside cheap baselines on the test split, and return its run.

    The measurements are printed as ``candid train`` prints them, and stored in the folder of the
    run as ``evaluation-test.json`` and ``baselines-test.json``. A dataset without a test split is
    not measured.

    A dataset in memory is stored in the folder ``data`` of the run, where ``load_run`` finds it;
    such a run is complete and can be moved.

    Args:
        data: a prepared dataset, or its folder.
        recipe: a recipe file, a table of the same keys, a config, or None for the default recipe,
            with ``init`` for the recipe of that run. A table may leave out ``name``: it is the name
            of ``out``.
        out: folder of the run: new or empty, or with ``resume`` that of an earlier run.
        init: an earlier run, or its folder, whose weights the training starts from, mapped by
            source id of items and users; see ``training.init_rows`` and
            ``training.init_optimizer``.
        resume: continue an interrupted run of the same recipe and dataset.
        refit: as for ``train_run``; the model before the refit is measured.
        measure: whether to measure; baselines take about 5 % of the CPU time of the training, or
            10 s. Leave it out where many recipes are tried, so that none is chosen by the test
            split.
        quiet: print nothing.
        **overrides: keys of the recipe, as nested tables or with dots; applied last.

    Example:
        >>> run = candid.train("data/films", out="runs/films", training={"epochs": 3}, seed=1)
        >>> run.recommend(users=[12], k=5)

    Raises:
        ConfigError: ``out`` already holds a run, or the recipe cannot work.
        DataError: no validation target can be recommended.
        ArtifactError: the dataset is not the one of the recipe or of the run to resume, or a
            checkpoint is damaged.
        Interrupted: stopped by a signal, after a checkpoint.
    """
    dataset = as_dataset(data, wait=False)
    if isinstance(init, Run):
        init = init.folder
    elif not isinstance(init, str | os.PathLike | None):
        raise ConfigError(f"init must be a run or its folder, got {type(init).__name__}")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(out).resolve().name).lstrip("._-") or "default"
    changes = {"name": name} | dict(_dotted(overrides))
    if recipe is None and init is not None:
        return _train_and_measure(
            recipe_of_run(init, changes), dataset, out, init, resume, refit, measure, quiet
        )
    if recipe is None:
        config = recipe_for(DataFacts.of(dataset), changes)[0]
        return _train_and_measure(config, dataset, out, init, resume, refit, measure, quiet)
    if isinstance(recipe, RunConfig):
        recipe = recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        source, table = "recipe", {"name": name, **recipe}
    elif not isinstance(recipe, str | os.PathLike):
        raise ConfigError(
            f"recipe must be a file, a table of keys, a config or None, got {type(recipe).__name__}"
        )
    else:
        source, table = str(recipe), read_toml(Path(recipe))
    config = parse_config(with_values(table, dict(_dotted(overrides))), source)
    return _train_and_measure(config, dataset, out, init, resume, refit, measure, quiet)


def recipe_of_run(init: Path | str, changes: Mapping[str, Any]) -> RunConfig:
    """Return the recipe of an earlier run with changes, without its section [data].

    Args:
        init: folder of the run.
        changes: dotted keys with their values.

    Raises:
        ArtifactError: not a run.
        ConfigError: a change is wrong.
    """
    table = {**read_manifest(Path(init))["config"], "data": None}
    return parse_config(with_values(table, changes), f"recipe of {init}")


def _train_and_measure(
    config: RunConfig,
    dataset: PreparedDataset,
    out: Path | str,
    init: Path | str | None,
    resume: bool,
    refit: bool,
    measure: bool,
    quiet: bool,
) -> Run:
    result = train_run(config, dataset, out, init=init, resume=resume, refit=refit)
    # Tables that are larger than memory stay in the file of the checkpoint.
    shards = config.training.shards_tables
    run = load_run(result.measured, dataset, map_weights=shards)
    if measure and (result.is_main or shards) and has_test_split(run):
        measured = measure_on_test(run)
        if not quiet and result.is_main:
            screen = Console(markup=False, highlight=False)
            if refit:
                screen.print("before the refit:")
            for line in measured.lines(run.folder):
                # A path must stay on one line to be copied; a table fits the width itself.
                screen.print(line, soft_wrap=isinstance(line, str))
    return load_run(result.folder, dataset, map_weights=shards) if refit else run


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables with dotted keys; the type of a component comes first."""
    for key in sorted(table, key=lambda key: key != "type"):
        if isinstance(table[key], Mapping):
            yield from _dotted(table[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", table[key]
