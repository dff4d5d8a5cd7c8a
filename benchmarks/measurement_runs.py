"""One measurement in a process of its own: a trained model on the test targets, and its files.

``quality_runs.py`` and ``default_parts_runs.py`` share it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import math
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import candid
from candid.atomic import replacing, write_json
from candid.data import PreparedDataset
from candid.errors import Interrupted
from candid.evaluation import EvaluationReport, PerUser
from candid.runs import load_run, train_run
from candid.training import BEST, LAST, PREVIOUS, TrainState
from quality_sets import METRIC, METRICS
from quality_tasks import Settings

BUSY = 75
"""Exit code of a measurement that another process is doing."""


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
    settings: Settings, dataset: PreparedDataset, folder: Path, minutes: float = math.inf
) -> tuple[dict[str, Any], PerUser]:
    """Train a model, or continue to, and measure it on the test targets."""
    run_file = folder / "run.json"
    is_known = run_file.exists()
    result = json.loads(run_file.read_text()).get("result") if is_known else None
    stopped = None
    if result is None:
        budget = Budget(minutes)
        try:
            trained = train_run(settings.config, dataset, folder, resume=is_known, progress=budget)
            result = trained.manifest["result"]
        except OverBudget:
            stopped, result = f"after {minutes:g} CPU minutes", budget.result()
    run = load_run(folder, dataset)
    report = run.evaluate("test", intervals=False, popularity_slices=0, history_slices=())
    if (folder / BEST).exists():
        for name in (LAST, PREVIOUS):  # only needed to resume
            (folder / name).unlink(missing_ok=True)
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


def file_name(key: str) -> str:
    """Return the key of a measurement as a part of a file name."""
    return key.replace("/", "-").replace(", ", "-").replace(" ", "-")


@contextlib.contextmanager
def only_process(lock: Path, *, waits: bool = False) -> Iterator[None]:
    """Keep other processes from the same measurement.

    Args:
        lock: the file that the processes lock.
        waits: wait for another process; otherwise exit with ``BUSY``.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            sys.exit(BUSY)
        yield


def measure_once(
    cell: Path,
    head: Mapping[str, Any],
    measure: Callable[[], tuple[dict[str, Any], PerUser | None]],
) -> None:
    """Do a measurement unless its cell exists, and write the cell.

    Args:
        cell: the JSON file of the result; the values of each user are in a file beside it.
        head: first keys of the result.
        measure: returns the other keys, and the values of each user.

    Raises:
        Interrupted: stopped by a signal; the CPU seconds are counted by the next attempt.
    """
    if cell.exists():
        return
    attempts = cell.with_suffix(".attempts")
    try:
        record, users = measure()
    except Interrupted:
        write_json(attempts, _usage(attempts))
        raise
    if users is not None:
        save_users(cell.with_suffix(".npz"), users)
    usage = _usage(attempts)
    # After a kill the usage of the attempt is unknown, but not the training in its checkpoint.
    usage["cpu_seconds"] = max(usage["cpu_seconds"], record.get("train_cpu_seconds", 0))
    write_json(cell, {**head, "versions": _versions(), **record, **usage})
    attempts.unlink(missing_ok=True)


def forget_cell(work: Path, cell: Path) -> None:
    """Remove what a work folder has of a measurement, so that it is done again."""
    for path in (cell, cell.with_suffix(".npz"), cell.with_suffix(".attempts")):
        path.unlink(missing_ok=True)
    shutil.rmtree(work / "runs" / cell.stem, ignore_errors=True)


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


def save_users(path: Path, users: PerUser) -> None:
    """Write the values of each user that paired tests need."""
    columns = [users.names.index(name) for name in METRICS if name in users.names]
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            user_ids=users.user_ids,
            names=np.array([users.names[column] for column in columns]),
            numerators=users.numerators[:, columns],
            denominators=users.denominators[:, columns],
        )


def load_users(path: Path) -> PerUser:
    """Read the values of each user."""
    with np.load(path) as stored:
        return PerUser(
            stored["user_ids"],
            tuple(map(str, stored["names"])),
            stored["numerators"],
            stored["denominators"],
        )


def mean_of(parts: Sequence[PerUser]) -> PerUser:
    """Return each user's metrics, averaged over the seeds."""
    return replace(parts[0], numerators=np.mean([one.numerators for one in parts], axis=0))
