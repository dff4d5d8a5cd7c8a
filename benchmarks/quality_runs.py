"""One measurement of ``quality.py`` in a process of its own: a trained model, or a baseline.

    python benchmarks/quality_runs.py --data DIR --work DIR model ml-100k default 0
    python benchmarks/quality_runs.py --data DIR --work DIR baseline ml-100k markov

The result is a JSON file in ``WORK/cells`` with the metrics of the test targets, and a file beside
it with the values of each user, for paired tests. An interrupted training resumes from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.metadata
import json
import math
import platform
import resource
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import candid
from candid.atomic import write_json
from candid.baselines import BASELINES, measure_baselines, training_rows
from candid.batches import target_counts
from candid.config import RunConfig
from candid.data import PreparedDataset, Role
from candid.errors import CandidError, Interrupted
from candid.evaluation import EvaluationReport, PerUser, evaluate
from candid.runs import load_run, train_run
from candid.runs.build import build_model
from candid.runs.features import fit_features
from candid.training import BEST, LAST, TrainState
from quality_sets import METRIC, METRICS, PreparedSet, prepare_set, tuning_dataset
from quality_tasks import BUSY, Settings, Task, command_of, save_users, settings_of


class OverBudget(Exception):
    """The training has used its CPU minutes."""


class Budget:
    """Progress of a training that stops when its CPU time is over, and prints validations.

    Args:
        minutes: CPU minutes of the training, earlier parts of a resumed one included.
    """

    def __init__(self, minutes: float) -> None:
        self._limit = 60 * minutes
        self._counted = -1.0
        self._mark = time.process_time()
        self._seconds = 0.0
        self._state = TrainState()

    def on_start(self, targets: str) -> None:
        """Print which interactions an epoch trains on."""
        print(targets, flush=True)

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Stop over the budget."""
        self._state = state
        if state.cpu_seconds != self._counted:  # an epoch ended since
            self._counted, self._mark = state.cpu_seconds, time.process_time()
        self._seconds = state.cpu_seconds + time.process_time() - self._mark
        if self._seconds > self._limit:
            raise OverBudget

    def on_validation(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Print the metric."""
        value = metrics[state.metric or METRIC]
        print(f"epoch {state.epoch}: {value:.4f}, {state.cpu_seconds:,.0f} CPU s", flush=True)

    def result(self) -> dict[str, Any]:
        """Return the figures of a training that stopped, as ``run.json`` has them."""
        state = self._state
        return {
            "best": state.best,
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            "steps": state.step,
            "cpu_seconds": round(self._seconds, 2),
        }


def measure_model(
    task: Task, one: PreparedSet, settings: Settings, folder: Path, minutes: float
) -> tuple[dict[str, Any], PerUser]:
    """Train a model, or continue to, and measure it on the test targets."""
    run_file = folder / "run.json"
    is_known = run_file.exists()
    result = json.loads(run_file.read_text()).get("result") if is_known else None
    stopped = None
    if result is None:
        budget = Budget(minutes)
        try:
            trained = train_run(
                settings.config, one.dataset, folder, resume=is_known, progress=budget
            )
            result = trained.manifest["result"]
        except OverBudget:
            stopped, result = f"after {minutes:g} CPU minutes", budget.result()
    run = load_run(folder, one.dataset)
    report = run.evaluate("test", intervals=False, popularity_slices=0, history_slices=())
    if (folder / BEST).exists():
        (folder / LAST).unlink(missing_ok=True)  # only needed to resume
    record = {
        "chosen": settings.chosen,
        "settings": settings.digest,
        "targets": settings.targets,
        "metrics": metrics_of(report),
        "counts": dict(report.counts),
        "parameters": run.manifest["parameters"],
        "validation": result["best"],
        "best_epoch": result["best_epoch"],
        "epochs": result["epochs"],
        "steps": result["steps"],
        "stopped": stopped,
        "train_cpu_seconds": result["cpu_seconds"],
    }
    return record, report.per_user


def measure_baseline(
    task: Task, one: PreparedSet, settings: Settings
) -> tuple[dict[str, Any], PerUser | None]:
    """Tune a baseline on validation and measure it on the targets of the default recipe."""
    dataset, config = one.dataset, settings.config
    evaluation = config.evaluation.model_copy(
        update={"popularity_slices": 0, "history_slices": (), "intervals": False}
    )
    model = build_model(config, dataset, fit_features(config.features, dataset))
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
        if isinstance(error, Interrupted):
            raise
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


def metrics_of(report: EvaluationReport) -> dict[str, dict[str, float]]:
    """Return value and standard error over users of each metric that the report has."""
    return {
        name: {"value": value, "se": standard_error(report.per_user, name)}
        for name in METRICS
        if name in report.metrics and (value := report.metrics[name].value) is not None
    }


def standard_error(users: PerUser, metric: str) -> float:
    """Return the standard error of a ratio of sums over users, by linearisation."""
    column = users.names.index(metric)
    numerators, denominators = users.numerators[:, column], users.denominators[:, column]
    num, total = int((denominators > 0).sum()), float(denominators.sum())
    if num < 2:
        return math.nan
    residuals = numerators - numerators.sum() / total * denominators
    return math.sqrt(float(np.square(residuals).sum()) * num / (num - 1)) / total


def measure(task: Task, data: Path, work: Path, minutes: float, overrides: tuple[str, ...]) -> None:
    """Do one measurement unless its cell exists, and write the cell."""
    one = prepare_set(task.set_name, data, work)
    settings = settings_of(task, one.dataset, overrides)
    cell = task.cell(work, settings.digest)
    if cell.exists():
        return
    attempts = cell.with_suffix(".attempts")
    folder = work / "runs" / cell.stem
    try:
        if task.seed is None:
            record, users = measure_baseline(task, one, settings)
        else:
            record, users = measure_model(task, one, settings, folder, minutes)
    except Interrupted:
        write_json(attempts, _usage(attempts))
        raise
    if users is not None:
        save_users(cell.with_suffix(".npz"), users)
    usage = _usage(attempts)
    # After a kill the usage of the attempt is unknown, but not the training in its checkpoint.
    usage["cpu_seconds"] = max(usage["cpu_seconds"], record.get("train_cpu_seconds", 0))
    if task.seed is not None:
        record["config"] = settings.stored
    write_json(
        cell,
        {
            "set": task.set_name,
            "name": task.name,
            **({} if task.seed is None else {"seed": task.seed}),
            "command": shlex.join(command_of(task, overrides)),
            "versions": _versions(),
            **record,
            **usage,
        },
    )
    attempts.unlink(missing_ok=True)


def _usage(attempts: Path) -> dict[str, Any]:
    """Return CPU seconds and peak memory of this process and of interrupted ones before it."""
    earlier = json.loads(attempts.read_text()) if attempts.exists() else {}
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime + earlier.get("cpu_seconds", 0)
    return {
        "cpu_seconds": round(seconds, 1),
        "peak_mib": max(round(used.ru_maxrss / 1024), earlier.get("peak_mib", 0)),
        "attempts": 1 + earlier.get("attempts", 0),
    }


def _versions() -> dict[str, str]:
    versions = {"candid": candid.__version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "implicit"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


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
    locks = options.work / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / task.key.replace("/", "-")).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(BUSY)
        try:
            measure(task, options.data, options.work, options.limit, tuple(options.overrides))
        except CandidError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
