"""The results of ``quality.py`` in a file, and comparisons of models with baselines."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from candid.baselines import BASELINES
from candid.data import Role
from candid.evaluation import PerUser, compare
from measurement_queue import BenchmarkError, ResultsFile
from measurement_runs import forget_cell, load_users, mean_of
from quality_sets import BEST_RECIPE, DEFAULT, METRIC, SETS, PreparedSet, prepare_set
from quality_tasks import Settings, Task, canonical, settings_of

RUN_SCRIPT = Path(__file__).with_name("quality_runs.py")
EMPTY: dict[str, Any] = {
    "command": "python benchmarks/quality.py",
    "clock": "CPU seconds of one process on one thread; other work shared the machine",
    "metric": METRIC,
} | {part: {} for part in ("sets", "configs", "runs", "baselines", "comparisons")}
"""Results before the first measurement."""


class Bench:
    """Measurements of a work folder.

    Args:
        data: folder of the public sets.
        work: folder of prepared data, runs and values of each user.
        results: the results.
        limit: CPU minutes of a training; None: those of the set.
        overrides: further settings of each recipe, ``KEY=VALUE``.
    """

    def __init__(
        self,
        data: Path,
        work: Path,
        results: ResultsFile,
        *,
        limit: float | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.data, self.work, self.results = data, work, results
        self.limit, self.overrides = limit, tuple(overrides)
        self._prepared: dict[str, PreparedSet] = {}

    def prepared(self, name: str) -> PreparedSet:
        """Prepare a set and record its facts.

        Raises:
            BenchmarkError: the results are of another version of the set.
        """
        if name not in self._prepared:
            one = prepare_set(name, self.data, self.work)
            facts = _facts_of(one)
            earlier = self.results.read()["sets"].get(name)
            if earlier is not None and earlier["fingerprint"] != facts["fingerprint"]:
                raise BenchmarkError(
                    f"{self.results.path} has figures of another version of {name}; use that "
                    "version of the data, or remove the lines of the set from the file"
                )
            if earlier is None:
                with self.results.change() as content:
                    content["sets"][name] = facts
            self._prepared[name] = one
        return self._prepared[name]

    def settings(self, task: Task) -> Settings:
        """Return the settings of a measurement now."""
        return settings_of(task, self.prepared(task.set_name).dataset, self.overrides)

    def is_finished(self, task: Task) -> bool:
        """Whether the results contain the measurement."""
        return task.key in self.results.read()[part_of(task)]

    def forget(self, task: Task) -> None:
        """Remove what the work folder has of a measurement, so that it is done again."""
        forget_cell(self.work, task.cell(self.work, self.settings(task).digest))

    def command(self, task: Task) -> list[str]:
        """Return the command of the process of a measurement, whose set is prepared first."""
        self.prepared(task.set_name)
        limit = SETS[task.set_name].minutes if self.limit is None else self.limit
        if task.name == BEST_RECIPE and self.limit is None:
            limit = float("inf")
        sets = [part for one in self.overrides for part in ("--set", one)]
        places = ["--data", str(self.data), "--work", str(self.work), "--limit", str(limit)]
        return [sys.executable, str(RUN_SCRIPT), *places, *sets, *task.arguments()]

    def record(self, task: Task) -> dict[str, Any]:
        """Move the result of a finished process into the results, and compare."""
        path = task.cell(self.work, self.settings(task).digest)
        cell: dict[str, Any] = json.loads(path.read_text())
        config = cell.pop("config", None)
        with self.results.change() as content:
            content[part_of(task)][task.key] = cell
            if config is not None:
                content["configs"][cell["settings"]] = config
                used = {one["settings"] for one in content["runs"].values()}
                content["configs"] = {
                    key: value for key, value in content["configs"].items() if key in used
                }
            for recipe in (DEFAULT, BEST_RECIPE):
                self._compare(content, task.set_name, recipe)
        return cell

    def _compare(self, content: dict[str, Any], name: str, recipe: str) -> None:
        """Compare a recipe with the baselines of a set, if all of them are finished."""
        key = f"{name}/{recipe}"
        content["comparisons"].pop(key, None)
        runs = [
            one for one in content["runs"].values() if (one["set"], one["name"]) == (name, recipe)
        ]
        baselines = [content["baselines"].get(f"{name}/{one}") for one in BASELINES]
        measured = [one for one in baselines if one is not None and "skipped" not in one]
        if not runs or not measured or None in baselines:
            return
        runs.sort(key=lambda one: int(one["seed"]))
        reason = None
        if len({canonical(one["settings"], content["configs"]) for one in runs}) > 1:
            reason = "its seeds have different settings"
        elif any(one["targets"] != runs[0]["targets"] for one in measured):
            reason = "a baseline was measured with other settings of the evaluation"
        else:
            try:
                content["comparisons"][key] = self._comparison(runs, measured)
            except FileNotFoundError as error:
                reason = f"{error.filename} is missing, which is in the work folder of its run"
        if reason is not None:
            print(f"{key} is not compared: {reason}; measure that again with --again", flush=True)

    def _comparison(
        self, runs: list[dict[str, Any]], baselines: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Compare runs with the best baselines, user by user."""
        users = [self._users(one) for one in runs]
        mean = mean_of(users)
        value = statistics.mean(one["metrics"][METRIC]["value"] for one in runs)
        found: dict[str, Any] = {"seeds": [one["seed"] for one in runs], "value": value}
        by_test = max(baselines, key=lambda one: one["metrics"][METRIC]["value"])
        tuned = [one for one in baselines if one["validation"] is not None]
        by_validation = max(tuned, key=lambda one: one["validation"]) if tuned else by_test
        for key, best in (("best_on_validation", by_validation), ("best_on_test", by_test)):
            other = self._users(best)
            found[key] = {
                "baseline": best["name"],
                "value": best["metrics"][METRIC]["value"],
                **asdict(compare(mean, other, METRIC)),
                "by_seed": {
                    str(one["seed"]): asdict(compare(mine, other, METRIC))
                    for one, mine in zip(runs, users, strict=True)
                },
            }
        return found

    def _users(self, record: dict[str, Any]) -> PerUser:
        task = Task(record["set"], record["name"], record.get("seed"))
        return load_users(task.cell(self.work, record["settings"]).with_suffix(".npz"))


def part_of(task: Task) -> str:
    """Return the part of the results that has a measurement."""
    return "baselines" if task.seed is None else "runs"


def _facts_of(one: PreparedSet) -> dict[str, Any]:
    """Return the size of a set, and how many test users have no history."""
    dataset, manifest = one.dataset, one.dataset.manifest
    is_test = np.asarray(dataset.roles) == Role.TEST
    owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
    with_history = np.bincount(owners[~is_test], minlength=dataset.num_users) > 0
    return {
        "fingerprint": manifest["fingerprint"],
        "counts": manifest["counts"],
        "split": manifest["split"],
        "left_out": one.left_out,
        "test_users_without_history": int((~with_history[np.unique(owners[is_test])]).sum()),
    }
