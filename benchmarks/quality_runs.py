"""One measurement of ``quality.py`` in a process of its own: a trained model, or a baseline.

    python benchmarks/quality_runs.py --data DIR --work DIR model ml-100k default 0
    python benchmarks/quality_runs.py --data DIR --work DIR baseline ml-100k markov

The result is a JSON file in ``WORK/cells`` with the metrics of the test targets, and a file beside
it with the values of each user, for paired tests. An interrupted training resumes from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from candid.baselines import BASELINES, measure_baselines, training_rows
from candid.batches import target_counts
from candid.config import RunConfig
from candid.data import PreparedDataset, Role
from candid.errors import CandidError
from candid.evaluation import EvaluationReport, PerUser, evaluate
from candid.runs.build import build_model
from candid.runs.features import fit_features
from measurement_runs import (
    file_name,
    measure_model,
    measure_once,
    metrics_of,
    only_process,
)
from quality_sets import PreparedSet, prepare_set, tuning_dataset
from quality_tasks import Settings, Task, command_of, settings_of


def measure_baseline(
    task: Task, one: PreparedSet, settings: Settings
) -> tuple[dict[str, Any], PerUser | None]:
    """Tune a baseline on validation and measure it on the targets of the default recipe."""
    dataset, config = one.dataset, settings.config
    evaluation = config.evaluation.model_copy(
        update={"popularity_slices": 0, "history_slices": (), "intervals": False}
    )
    model = build_model(config, dataset, fit_features(config.features, dataset), is_read=True)
    known: dict[str, Any] = {"needs_history": model.needs_history}
    inner = tuning_dataset(dataset)
    is_inner = inner is not dataset
    try:
        results = measure_baselines(
            inner,
            evaluation,
            role=Role.VALIDATION if is_inner else Role.TEST,
            names=[task.name],
            item_counts=target_counts(inner, config.batches),
            **known,
        )
    except CandidError as error:
        return {"skipped": str(error)}, None
    (found,) = results.results
    report = found.report
    if is_inner:
        report = _fitted_again(found.model, dataset, config, evaluation, **known)
    record = {
        "settings": settings.digest,
        "targets": settings.targets,
        "tuned": dict(found.settings),
        "validation": found.validation,
        "tuned_on": results.tuned_on,
        "trials": found.trials,
        "metrics": metrics_of(report),
        "counts": dict(report.counts),
    }
    return record, report.per_user


def _fitted_again(
    model: Any, dataset: PreparedDataset, config: RunConfig, evaluation: Any, *, needs_history: bool
) -> EvaluationReport:
    """Fit the settings of a tuned baseline to all training rows and measure it on the test."""
    fitted = type(model).fit(training_rows(dataset), model.config)
    fitted.needs_history = needs_history
    batch_size = max(1, min(evaluation.batch_size, 2**23 // dataset.num_items))
    return evaluate(
        fitted,
        dataset,
        evaluation.model_copy(update={"batch_size": batch_size}),
        role=Role.TEST,
        max_length=max(1, int(np.diff(dataset.user_offsets).max())),
        item_counts=target_counts(dataset, config.batches),
    )


def measure(task: Task, data: Path, work: Path, minutes: float, overrides: tuple[str, ...]) -> None:
    """Do one measurement unless its cell exists, and write the cell."""
    one = prepare_set(task.set_name, data, work)
    settings = settings_of(task, one.dataset, overrides)
    cell = task.cell(work, settings.digest)
    head: dict[str, Any] = {"set": task.set_name, "name": task.name}
    if task.seed is not None:
        head["seed"] = task.seed
    head["command"] = shlex.join(command_of(task, overrides))

    def measured() -> tuple[dict[str, Any], PerUser | None]:
        if task.seed is None:
            return measure_baseline(task, one, settings)
        folder = work / "runs" / cell.stem
        record, users = measure_model(settings, one.dataset, folder, minutes)
        return record | {"config": settings.stored}, users

    measure_once(cell, head, measured)


def main() -> None:
    """Do one measurement; exit with 75 if another process does it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=math.inf, help="CPU minutes of a training")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("kind", choices=("model", "baseline"))
    parser.add_argument("set_name")
    parser.add_argument("name")
    parser.add_argument("seed", nargs="?", type=int)
    options = parser.parse_args()
    if options.kind == "baseline" and options.name not in BASELINES:
        parser.error(f"unknown baseline {options.name!r}; known: {', '.join(BASELINES)}")
    task = Task(options.set_name, options.name, options.seed)
    torch.set_num_threads(1)
    with only_process(options.work / "locks" / file_name(task.key)):
        try:
            measure(task, options.data, options.work, options.limit, tuple(options.overrides))
        except CandidError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
