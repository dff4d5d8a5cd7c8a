"""One measurement of ``default_parts.py`` in a process of its own: costs of steps, or a training.

    python benchmarks/default_parts_runs.py --data DIR --work DIR ml-100k
    python benchmarks/default_parts_runs.py --data DIR --work DIR ml-100k RESULTS 1 dot 1 0

The result is a JSON file in ``WORK/cells``; that of a training has a file beside it with the
values of each user, for paired tests. An interrupted training resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from candid.batches import Loader, epoch_targets
from candid.config import RunConfig
from candid.data import PreparedDataset
from candid.errors import CandidError
from candid.evaluation import PerUser
from candid.runs.build import build_model, build_objective
from candid.runs.features import fit_features
from candid.training import Trainer
from default_parts_variants import (
    DEFAULT,
    SETS,
    VARIANTS,
    CostTask,
    RunTask,
    base_settings,
    config_of,
    run_settings,
    variants_of,
)
from measurement_runs import file_name, measure_model, measure_once, only_process
from quality_sets import prepare_set

TURNS = 31
"""Turns in which the steps of all variants are measured; the first one warms up."""
STEPS = 4
"""Steps of a variant in a turn; few, so that other work on the machine slows all variants alike."""


def measure_costs(base: RunConfig, dataset: PreparedDataset) -> dict[str, Any]:
    """Measure the CPU seconds of a step of each variant, in turn, and those of the start.

    Args:
        base: the default recipe of the set.
        dataset: the set.

    Returns:
        ``num_batches``, the steps of an epoch; by variant: ``seconds`` of a step; ``quartiles``
        over the turns; ``start``, the seconds of the first item vectors.
    """
    targets = epoch_targets(dataset, base.batches)
    configs = variants_of(base)
    started: dict[tuple[str, int], float] = {}
    trainers, loaders, start = {}, {}, {}
    for name, config in configs.items():
        tower = config.model.item_tower.model_dump()
        kind = (tower["initial"], tower["dim"])
        if kind not in started:
            features = fit_features(config.features, dataset)
            before = time.process_time()
            build_model(config, dataset, features)
            started[kind] = time.process_time() - before
        start[name] = round(started[kind], 3)
        # The cost of a step does not depend on the values of the vectors.
        random = config_of(config, DEFAULT, {"model.item_tower.initial": "random"})
        loss, sampler = build_objective(random, dataset, targets.counts)
        loaders[name] = Loader(dataset, config.batches, seed=0)
        trainers[name] = Trainer(
            model=build_model(random, dataset),
            loader=loaders[name],
            loss=loss,
            sampler=sampler,
            config=config.training,
            folder=Path(tempfile.gettempdir()),  # nothing is written without a checkpoint
            item_is_trained=torch.from_numpy(targets.counts > 0),
        )
    num_batches = loaders[DEFAULT].num_batches
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(TURNS):
        batches = range(turn * STEPS, (turn + 1) * STEPS)
        for name, trainer in trainers.items():
            before = time.process_time()
            for step in batches:
                trainer.step(loaders[name].batch(0, step % num_batches))
            if turn:
                seconds[name].append((time.process_time() - before) / STEPS)
    return {
        "num_batches": num_batches,
        "seconds": {name: round(one, 6) for name, one in typical(seconds).items()},
        "quartiles": {
            name: [round(q, 6) for q in statistics.quantiles(one, n=4)[::2]]
            for name, one in seconds.items()
        },
        "start": start,
    }


def typical(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the typical seconds of each variant from those of its turns.

    A turn compares the variants on equal batches at about the same time. The figure of the default
    is the median of its turns; that of a variant is this one times the median, over the turns, of
    its ratio to the default.
    """
    base = seconds[DEFAULT]
    return {
        name: statistics.median(base)
        * statistics.median(mine / other for mine, other in zip(turns, base, strict=True))
        for name, turns in seconds.items()
    }


def measure_run(task: RunTask, dataset: PreparedDataset, costs: dict[str, Any], work: Path) -> None:
    """Train and measure a variant, unless that was done."""
    base, settings = run_settings(task, dataset, costs)
    cell = task.cell(work, settings.digest)

    def measured() -> tuple[dict[str, Any], PerUser]:
        record, users = measure_model(settings, dataset, work / "runs" / cell.stem)
        del record["chosen"], record["targets"]
        return record | {"base": base.digest, "lr": settings.config.training.lr}, users

    head = {
        "set": task.set_name,
        "share": task.share,
        "variant": task.variant,
        "rate": task.rate,
        "seed": task.seed,
    }
    measure_once(cell, head, measured)


def main() -> None:
    """Do one measurement; exit with 75 if another process does it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("set_name", choices=SETS)
    parser.add_argument("results", type=Path, nargs="?", help="the file that has the costs")
    parser.add_argument("share", type=float, nargs="?", default=1.0)
    parser.add_argument("variant", choices=VARIANTS, nargs="?", default=DEFAULT)
    parser.add_argument("rate", type=float, nargs="?", default=1.0)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    is_cost = options.results is None
    task: CostTask | RunTask = CostTask(options.set_name)
    if not is_cost:
        task = RunTask(options.set_name, options.share, options.variant, options.rate, options.seed)
    lock = options.work / "locks" / f"parts-{file_name(task.key)}"
    with only_process(lock, waits=is_cost):  # the runs of all processes need the costs
        try:
            dataset = prepare_set(task.set_name, options.data, options.work).dataset
            if isinstance(task, CostTask):
                base = base_settings(dataset, {})
                measure_once(
                    task.cell(options.work, base.digest),
                    {"set": task.set_name, "base": base.digest},
                    lambda: (measure_costs(base.config, dataset), None),
                )
            else:
                content = json.loads(options.results.read_text(encoding="utf-8"))
                costs = content["bases"][task.base_key]["costs"]
                measure_run(task, dataset, costs, options.work)
        except CandidError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
