"""Ten days of new data: warm starts of several kinds against training anew each day.

    CANDID_DATA=../shared/data nice python benchmarks/warm_start.py                    # both sets
    CANDID_DATA=../shared/data nice python benchmarks/warm_start.py --datasets ml-1m --days 2
    CANDID_DATA=../shared/data nice python benchmarks/warm_start.py --full             # hours

The last part of a set is cut into days: ml-1m by equal quantiles of the time of its last 20 % of
interactions, nowplaying by equal numbers of its last 20 % of sessions, whose ids are in order of
time. The dataset of day d has the rows of days up to d as training rows, and those of day d + 1 as
test targets; a new session of nowplaying has its last item as target and the others as history.

Variants train on each day from the run of the day before, which is the same for all on day 0:
``anew`` repeats the default training; ``stale`` never trains again; the others are warm starts with
the settings of ``VARIANTS``. Every run is measured on the targets of the next day, on those of its
own day (which it has trained on since) and on those of day 1: what it has kept of them is the
opposite of forgetting. Other days are mapped by source id.

All variants have the default recipe with the keys of ``SMALLER``, a narrower model and shorter
histories, so that both sets need about an hour of one core; ``--full`` leaves these keys out.

CPU seconds are those of the process in training, on one thread. Each set has results of its own,
so that two processes can measure the two sets. A finished measurement is in the results and is not
repeated: the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import candid
from candid.atomic import write_json
from candid.config import DataFacts, RunConfig, recipe_for
from candid.data import PreparedDataset, open_dataset, prepare
from candid.evaluation import EvaluationReport
from candid.runs import load_run, train_run
from candid.runs.mapped_run import mapped_run
from candid.version import __version__

RESULTS = Path(__file__).parent / "results"
METRIC = "ndcg@10"
LAST_PART = 0.2
"""Share of the interactions, or sessions, that the days are cut from."""
VARIANTS: dict[str, dict[str, Any] | None] = {
    "anew": None,
    "stale": None,
    "warm, all": {"epochs": 2, "init_optimizer": "reset"},
    "warm, new": {"epochs_new": 3, "replay": 0.2, "init_optimizer": "reset"},
    "warm, new, no replay": {"epochs_new": 3, "replay": 0.0, "init_optimizer": "reset"},
    "warm, new, random rows": {
        "epochs_new": 3,
        "replay": 0.2,
        "init_optimizer": "reset",
        "init_rows": "random",
    },
    "warm, new, optimizer kept": {"epochs_new": 3, "replay": 0.2, "init_optimizer": "keep"},
}
"""Keys of [training] of each warm start."""
NARROW: dict[str, Any] = {
    "model.query_tower.dim": 32,
    "model.query_tower.hidden": 128,
    "model.query_tower.num_blocks": 1,
    "model.query_tower.num_heads": 1,
    "model.query_tower.dropout": 0.2,
    "model.item_tower.dim": 32,
}
SMALLER: dict[str, dict[str, Any]] = {
    "ml-1m": {**NARROW, "batches.max_length": 50, "training.epochs": 6},
    "nowplaying": {**NARROW, "batches.max_length": 50, "training.epochs": 3},
}
"""Keys of the recipe of every variant of a set; the epochs are those of a training anew."""


def ml1m_days(data: Path, num_days: int) -> pl.DataFrame:
    """Return the rows of ml-1m with the columns user, item, time and day (0: before the days)."""
    rows = pl.read_parquet(data / "ml-1m" / "interactions.parquet")
    time = pl.coalesce("timestamp", "timestamp_lower", "timestamp_upper").cast(pl.Int64)
    rows = rows.filter(pl.col("position").is_not_null()).with_columns(time=time)
    rows = rows.filter(pl.col("time").is_not_null()).sort("user_id", "position")
    # Positions are exact, some times are bounds: a row is never before the row before it.
    rows = rows.with_columns(pl.col("time").cum_max().over("user_id"))
    shares = np.linspace(1 - LAST_PART, 1, num_days + 1)[:-1]
    cuts = np.quantile(rows["time"].to_numpy(), shares)
    day = np.searchsorted(cuts, rows["time"].to_numpy(), side="right")
    return rows.select(
        pl.col("user_id").alias("user"),
        pl.col("item_id").alias("item"),
        "time",
        pl.Series("day", day, dtype=pl.Int32),
    )


def nowplaying_days(data: Path, num_days: int) -> pl.DataFrame:
    """Return the rows of nowplaying with the columns user (session), item, time and day."""
    rows = pl.read_parquet(data / "nowplaying" / "interactions.parquet")
    sessions = rows["session_id"].unique().sort()
    first = int(len(sessions) * (1 - LAST_PART))
    cuts = sessions.gather(np.linspace(first, len(sessions), num_days + 1)[:-1].astype(int))
    day = np.searchsorted(cuts.to_numpy(), rows["session_id"].to_numpy(), side="right")
    return rows.select(
        pl.col("session_id").alias("user"),
        pl.col("item_id").alias("item"),
        pl.col("position").cast(pl.Int64).alias("time"),
        pl.Series("day", day, dtype=pl.Int32),
    )


SETS = {"ml-1m": (ml1m_days, False), "nowplaying": (nowplaying_days, True)}
"""The table of each set, and whether its users are sessions of one day."""


def day_table(rows: pl.DataFrame, day: int, *, sessions: bool) -> pl.DataFrame:
    """Return the rows up to ``day`` + 1 with a column ``role``.

    Args:
        rows: columns user, item, time and day.
        day: days up to this one train; the next one is the test.
        sessions: whether all rows of a test user but the last are history.
    """
    known = rows.filter(pl.col("day") <= day + 1)
    is_test = pl.col("day") == day + 1
    role = pl.when(is_test).then(pl.lit("test")).otherwise(pl.lit("train"))
    if sessions:
        is_last = pl.col("time") == pl.col("time").max().over("user")
        role = pl.when(is_test & ~is_last).then(pl.lit("history")).otherwise(role)
    return known.with_columns(role=role)


def dataset_of_day(rows: pl.DataFrame, day: int, work: Path, *, sessions: bool) -> PreparedDataset:
    """Prepare the dataset of a day, with the ids of the day before; opened if it is there."""
    out = work / f"data{day}"
    if out.exists():
        return open_dataset(out)
    settings: dict[str, Any] = {"ids_from": str(work / f"data{day - 1}")} if day else {}
    by_time = "order" if sessions else "time"
    settings[by_time] = "time"
    return prepare(
        day_table(rows, day, sessions=sessions),
        user="user",
        item="item",
        split={"kind": "column", "column": "role"},
        out=out,
        **settings,
    )


def config_of(dataset: PreparedDataset, changes: dict[str, Any]) -> RunConfig:
    """Return the default recipe of a dataset on one thread."""
    keys = {
        "name": "day",
        "threads": 1,
        "evaluation.popularity_slices": 0,
        "evaluation.history_slices": [],
    }
    return recipe_for(DataFacts.of(dataset), keys | changes)[0]


def warm_config(base: RunConfig, training: dict[str, Any]) -> RunConfig:
    """Return the recipe of a warm start: that of the first day with other keys of [training]."""
    changed = base.training.model_copy(update={"patience": None, **training})
    return base.model_copy(update={"training": changed})


class Days:
    """The days of one set, measured variant by variant.

    Args:
        name: of the set.
        rows: columns user, item, time and day.
        sessions: whether users are sessions of one day.
        work: folder of datasets and runs.
        results: file of the results.
        changes: dotted keys over the default recipe.
        seed: of every training.
    """

    def __init__(
        self,
        name: str,
        rows: pl.DataFrame,
        *,
        sessions: bool,
        work: Path,
        results: Path,
        changes: dict[str, Any],
        seed: int = 0,
    ) -> None:
        self.name, self.rows, self.sessions = name, rows, sessions
        self.work, self.results = work / name / f"seed{seed}", results
        self.seed = seed
        self.changes = changes
        self.base = config_of(self.dataset(0), {"seed": seed, **changes})

    def dataset(self, day: int) -> PreparedDataset:
        """Return the dataset of a day; those of earlier days are prepared first."""
        for before in range(day):
            dataset_of_day(self.rows, before, self.work, sessions=self.sessions)
        return dataset_of_day(self.rows, day, self.work, sessions=self.sessions)

    def measure(self, variant: str, day: int) -> dict[str, Any]:
        """Return the measurements of a variant on a day; trains what is missing."""
        key = f"{self.name}/{variant}/{self.seed}/{day}"
        document = read_results(self.results, self.changes)
        if key not in document["days"]:
            values = self._measure(variant, day)
            document = read_results(self.results, self.changes)
            document["days"][key] = values
            write_json(self.results, document)
            print(f"{key}: {values}", flush=True)
        return dict(document["days"][key])

    def _measure(self, variant: str, day: int) -> dict[str, Any]:
        folder, cpu = self._run(variant, day)
        values = {"cpu_seconds": cpu, "next_day": self._value(folder, day)}
        if day > 0:
            values["same_day"] = self._value(folder, day - 1)
            values["day_1"] = self._value(folder, 0)
        return values

    def _run(self, variant: str, day: int) -> tuple[Path, float]:
        """Return the run of a day, trained if it is missing, and its CPU seconds."""
        first = self.work / "run-day0"
        if day == 0 or variant == "stale":
            return first, self._train(first, 0, self.base, None) if day == 0 else 0.0
        folder = self.work / f"run-{variant.replace(', ', '-').replace(' ', '-')}-day{day}"
        training = VARIANTS[variant]
        if training is None:
            return folder, self._train(folder, day, self.base, None)
        before, _ = self._run(variant, day - 1)
        return folder, self._train(folder, day, warm_config(self.base, training), before)

    def _train(self, out: Path, day: int, config: RunConfig, init: Path | None) -> float:
        manifest = out / "run.json"
        done = manifest.exists() and "result" in json.loads(manifest.read_text())
        if not done:
            shutil.rmtree(out, ignore_errors=True)
            train_run(config, self.dataset(day), out, init=init)
        return float(json.loads(manifest.read_text())["result"]["cpu_seconds"])

    def _value(self, folder: Path, day: int) -> dict[str, float]:
        """Measure a run on the targets of the day after ``day``."""
        dataset = self.dataset(day)
        own = json.loads((folder / "run.json").read_text())["dataset"]["fingerprint"]
        run = (
            load_run(folder, dataset) if own == dataset.fingerprint else mapped_run(folder, dataset)
        )
        report: EvaluationReport = run.evaluate("test")
        estimate = report.metrics[METRIC]
        return {
            METRIC: float(estimate.value or 0.0),
            "low": float(estimate.low or 0.0),
            "high": float(estimate.high or 0.0),
            "users": report.counts["users_ranked"],
            "misses": report.counts.get("unranked_targets", 0),
        }


def read_results(path: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the results so far.

    Args:
        path: file of the results.
        changes: dotted keys over the default recipe, for a file that does not exist yet.
    """
    if path.exists():
        return dict(json.loads(path.read_text()))
    return {
        "command": shlex.join(["python", "benchmarks/warm_start.py", *sys.argv[1:]]),
        "metric": METRIC,
        "clock": "CPU seconds of one process on one thread; other work shared the machine",
        "recipe": {"default with": changes or {}},
        "variants": {name: settings for name, settings in VARIANTS.items()},
        "versions": {
            "candid": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "days": {},
    }


def main() -> None:
    """Measure all variants of the chosen sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--days", type=int, default=10, help="number of days with a training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("warm_start_work"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--full", action="store_true", help="the default recipe, without SMALLER")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON", help="recipe keys")
    arguments = parser.parse_args()
    data = Path(os.environ.get("CANDID_DATA", "../shared/data"))
    changes = {
        key: json.loads(value) for key, value in (one.split("=", 1) for one in arguments.set)
    }
    for name in arguments.datasets:
        table, sessions = SETS[name]
        # The test of the last day is one more day.
        days = Days(
            name,
            table(data, arguments.days + 1),
            sessions=sessions,
            work=arguments.work,
            results=arguments.results / f"warm_start_{name}.json",
            changes=({} if arguments.full else SMALLER[name]) | changes,
            seed=arguments.seed,
        )
        for day in range(arguments.days + 1):
            for variant in arguments.variants:
                days.measure(variant, day)
    print(f"written to {arguments.results} by candid {candid.__version__}")


if __name__ == "__main__":
    main()
