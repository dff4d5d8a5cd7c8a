"""Predicted drift of estimators against the excess likelihood of trained models.

    python benchmarks/drift_training.py

Datasets: synthetic data, Diginetica and MovieLens-1M (``CANDID_DATA``). In Diginetica a "user"
is an item, and its interactions are the items seen within ten positions after it in a session.
A cell is one estimator with n samples by popularity. Each cell is trained with seeds 0, 1
and 2. Seed 0 runs at every learning rate of a common grid; seeds 1 and 2 run at the learning rate
with the lowest validation NLL. The full softmax has the same grid and the same number of steps.

Measured: the test NLL of a cell minus that of the full softmax, mean over the seeds. Predicted: the
drift of the cell's estimator at the full-softmax model of seed 0, without any training of the cell.
Beside it stands the bias of the gradient given the positive, at the same model.

The model is a user vector times an item vector, trained long enough to converge, with L2
regularization. Each step has 16 independent samples, each shared by a part of the rows: less
noise in the gradient and the same estimator.

``drift_figure.py`` writes the tables and the figure from the results. A finished training is not
repeated: its line is in ``WORK/cells.jsonl``. Interrupt at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import polars as pl
import torch

from candid import __version__
from candid.audit import (
    AuditInput,
    AuditSampler,
    DriftBudget,
    Estimator,
    SamplingBudget,
    measure_drift,
    proposal_distance,
    sampler_config,
)
from candid.audit.full_softmax import compute_full_softmax
from candid.audit.measurement import measure
from candid.batches import Loader, target_counts
from candid.config import RunConfig, parse_config
from candid.data import DataConfig, PreparedDataset, SplitConfig, open_dataset, prepare_folder
from candid.runs import Run, load_run, train_run
from candid.synthetic import SyntheticConfig, SyntheticData

RESULT = Path(__file__).parent / "results" / "drift_training.json"
KINDS = {
    ("refined", "mask"): (16, 64, 256),
    ("logq", "keep"): (16, 64, 256),
    ("logq", "mask"): (16, 64, 256),
    ("published_code", "mask"): (16, 64),
}
"""Correction and rule of accidental hits -> numbers of samples."""
SEEDS = (0, 1, 2)
RATES = (0.05, 0.02, 0.1)
DIM = 10
SYNTHETIC = {
    "num_users": 250,
    "num_items": 1_000,
    "interactions_mean": 1_000.0,
    "interactions_min": 600,
    "interactions_max": 2_000,
    "history_weight": 0.0,
    "temperature": 0.1,
    "dim": 8,
}
EPOCHS = {"synthetic": 8, "diginetica": 6, "ml1m": 8}
BATCHES: dict[str, Any] = {"unit": "interaction", "batch_size": 2048}
TRAINING: dict[str, Any] = {
    "optimizer": "adam",  # weight decay as a part of the gradient: the same objective for all
    "weight_decay": 1e-5,
    "clip_norm": None,  # clipping noisy gradients would add a bias of its own
    "schedule": "linear",
    "num_groups": 16,
    "patience": None,
    "trackers": [],
}
EVALUATION: dict[str, Any] = {
    "ks": [10],
    "metric": "ndcg@10",
    "filter_seen": False,
    "intervals": False,
    "popularity_slices": 0,
    "history_slices": [],
}
ROWS = 64
"""Random training interactions at which drift and bias are measured."""
REPEATS = {16: 1024, 64: 512, 256: 256}
"""Samples of a drift, by n: a small sample has more noise and costs less."""
BIAS = SamplingBudget(repeats=128)


@dataclass(frozen=True)
class Cell:
    """One estimator with n samples by popularity; n = 0 is the full softmax."""

    data: str
    n: int
    correction: str = ""
    hits: str = ""

    @property
    def label(self) -> str:
        """Name in tables and files."""
        if not self.n:
            return "full softmax"
        return f"{self.correction}{', hits kept' if self.hits == 'keep' else ''}" + (
            ", hits masked" if self.correction == "logq" and self.hits == "mask" else ""
        )


def cells(data: str) -> list[Cell]:
    """Return the cells of a dataset, the full softmax first."""
    return [Cell(data, 0)] + [Cell(data, n, *kind) for kind, sizes in KINDS.items() for n in sizes]


def interactions(data: str) -> pl.DataFrame:
    """Return users and items of a dataset."""
    root = Path(os.environ.get("CANDID_DATA", "../shared/data"))
    if data == "ml1m":  # the 500 most active users, and items that 100 of them have rated
        frame = pl.read_parquet(root / "ml-1m" / "interactions.parquet")
        frame = frame.filter(pl.col("user_id").is_in(_top(frame, "user_id", 500)))
        frame = frame.filter(pl.len().over("item_id") >= 100)
    elif data == "diginetica":  # "user" is an item; pairs within ten positions of a session
        views = pl.read_parquet(root / "diginetica" / "interactions.parquet")
        views = views.filter(pl.col("item_id").is_in(_top(views, "item_id", 1_000)))
        views = views.sort("session_id", "position")
        later = [
            views.with_columns(user_id=pl.col("item_id").shift(gap).over("session_id"))
            for gap in range(1, 11)
        ]
        frame = pl.concat(later).drop_nulls("user_id")
        frame = frame.filter(pl.col("user_id") != pl.col("item_id"))
    else:
        return SyntheticData(SyntheticConfig(**SYNTHETIC)).interactions(0, SYNTHETIC["num_users"])
    return frame.select("user_id", "item_id")


def _top(frame: pl.DataFrame, column: str, count: int) -> pl.Series:
    """Return the most frequent values of a column."""
    sizes = frame.group_by(column).len().sort(["len", column], descending=True)
    return sizes[column][:count].implode()


def dataset(data: str, work: Path) -> PreparedDataset:
    """Prepare a dataset with a random 80/5/15 split of the interactions, unless that is done."""
    folder, table = work / data, work / f"{data}.parquet"
    if not folder.exists():
        frame = interactions(data).select("user_id", "item_id").sort("user_id", "item_id")
        point = np.random.default_rng(0).random(len(frame))
        roles = np.array(["train", "validation", "test"])[np.digitize(point, (0.80, 0.85))]
        frame.with_columns(role=pl.Series(roles)).write_parquet(table)
        split = SplitConfig(kind="column", column="role", unseen="drop")
        prepare_folder(DataConfig(interactions=str(table), split=split), folder)
    return open_dataset(folder)


def config(cell: Cell, rate: float, seed: int) -> RunConfig:
    """Return the config of one training."""
    table: dict[str, Any] = {
        "name": "cell",
        "seed": seed,
        "device": "cpu",
        "threads": 1,
        "batches": BATCHES,
        "model": {
            "query_tower": {"type": "user_embedding", "dim": DIM},
            "item_tower": {"type": "item_embedding", "dim": DIM},
        },
        "loss": {"type": "full_softmax"},
        "training": TRAINING
        | {
            "lr": rate,
            "epochs": EPOCHS[cell.data],
            "validate_every": EPOCHS[cell.data],
            "checkpoint_every": EPOCHS[cell.data],
            "softmax_over": "trained",
        },
        "evaluation": EVALUATION,
    }
    if cell.n:
        table["sampler"] = {"type": "popularity", "num_candidates": cell.n}
        table["loss"] = {"type": "sampled_softmax", "correction": cell.correction}
        table["loss"]["accidental_hits"] = cell.hits
    return parse_config(table, "drift_training")


class Lines:
    """Results by key, one JSON line each, appended to a file as soon as they exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._values = {tuple(key): value for key, value in map(json.loads, lines)}

    def get(self, key: tuple[Any, ...], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of a key, computed if the file does not have it."""
        if key not in self._values:
            self._values[key] = compute()
            with self._path.open("a") as file:
                file.write(json.dumps([key, self._values[key]]) + "\n")
            print(*key, self._values[key], flush=True)
        return self._values[key]


def trained(cell: Cell, rate: float, seed: int, work: Path) -> dict[str, Any]:
    """Train once and return the NLL of validation and test, and the time."""
    folder = run_folder(cell, rate, seed, work)
    shutil.rmtree(folder, ignore_errors=True)
    data = dataset(cell.data, work)
    began = time.process_time()
    train_run(config(cell, rate, seed), data, folder)
    seconds = time.process_time() - began
    run = load_run(folder, data)
    result = {
        f"{split}_nll": run.evaluate(split).metrics["nll"].value for split in ("validation", "test")
    }
    if cell.n:  # of the full softmax the models are needed again
        shutil.rmtree(folder)
    return result | {"cpu_seconds": round(seconds, 1)}


def run_folder(cell: Cell, rate: float, seed: int, work: Path) -> Path:
    """Return the folder of one training."""
    return work / "runs" / f"{cell.data}-{cell.label}-{cell.n}-{rate}-{seed}".replace(", ", "-")


def trainings(cell: Cell, lines: Lines, work: Path) -> dict[str, Any]:
    """Return the results of a cell: all rates with the first seed, the best one with the others."""

    def result(rate: float, seed: int) -> dict[str, Any]:
        key = (cell.data, cell.label, cell.n, rate, seed)
        return lines.get(key, lambda: trained(cell, rate, seed, work))

    grid = {rate: result(rate, SEEDS[0]) for rate in RATES}
    best = min(RATES, key=lambda rate: grid[rate]["validation_nll"])
    return {"lr": best, "grid": grid, "seeds": [result(best, seed) for seed in SEEDS]}


def audit_input(run: Run) -> AuditInput:
    """Return a run with random training interactions as rows: users weigh as in the NLL."""
    loader = Loader(run.dataset, run.config.batches, seed=0)
    rows = slice(0, ROWS)
    batch = loader.batch(0, 0)
    with torch.no_grad():
        query = run.model.encode_queries(batch)[rows]
        item_vectors = run.model.encode_catalog()
    return AuditInput(
        name="full softmax",
        query=query,
        item_vectors=item_vectors,
        positive_ids=batch.positive_ids[rows],
        user_ids=batch.user_ids[rows],
        counts=torch.from_numpy(target_counts(run.dataset, run.config.batches)),
        training_positive_ids=batch.positive_ids,
        training_user_ids=batch.user_ids,
    )


def predicted(data: AuditInput, n: int, of_size: Sequence[Cell], repeats: int) -> dict[str, Any]:
    """Return drift and gradient bias of the cells with n samples, at a model, by label."""
    estimators = [
        Estimator(cell.correction, accidental_hits=cell.hits)  # type: ignore[arg-type]
        for cell in of_size
    ]

    def sampler() -> AuditSampler:
        settings = sampler_config({"type": "popularity", "num_candidates": n})
        generator = torch.Generator().manual_seed(0)
        return AuditSampler(settings, data, batch_rows=len(data.query), generator=generator)

    budget = DriftBudget(repeats=repeats, num_positives=8)
    drifts = measure_drift(data, sampler(), estimators, budget)
    exact = compute_full_softmax(data)
    biases = [one.statistics() for one in measure(data, exact, sampler(), estimators, BIAS)]
    distance = proposal_distance(data, sampler())
    assert distance is not None
    results: dict[str, Any] = {
        "chi2": distance.chi2.mean().item(),
        "kl": distance.kl.mean().item(),
        "mean_p": float((1.0 - exact.sample_weight).mean()),
    }
    for cell, drift, bias in zip(of_size, drifts, biases, strict=True):
        results[cell.label] = {
            "drift": drift.mean,
            "drift_se": drift.error,
            "drift_block_se": drift.block_error,
            "gradient_bias": bias.bias,
            "gradient_bias_se": bias.bias_error,
        }
    return results


def results_of(lines: Lines, work: Path) -> list[dict[str, Any]]:
    """Train and measure what is missing; return one row for each cell."""
    trained_cells = {
        cell: trainings(cell, lines, work)
        for group in zip(*map(cells, EPOCHS), strict=True)
        for cell in group
    }
    rows = []
    for data in EPOCHS:
        full, *sampled = cells(data)
        reference = trained_cells[full]
        for cell in sampled:
            others = [one for one in sampled if one.n == cell.n]
            prediction = prediction_of(others, reference["lr"], lines, work)
            rows.append(row_of(cell, prediction, trained_cells[cell], reference))
    return rows


def prediction_of(of_size: Sequence[Cell], rate: float, lines: Lines, work: Path) -> dict[str, Any]:
    """Return the predictions for the cells of one dataset and n, at the full-softmax model."""
    data, n = of_size[0].data, of_size[0].n
    folder = run_folder(Cell(data, 0), rate, SEEDS[0], work)
    key = (data, "predicted", n, rate)

    def compute() -> dict[str, Any]:
        run = load_run(folder, dataset(data, work))
        return predicted(audit_input(run), n, of_size, REPEATS[n])

    return lines.get(key, compute)


def row_of(
    cell: Cell, prediction: dict[str, Any], mine: dict[str, Any], reference: dict[str, Any]
) -> dict[str, Any]:
    """Return everything about a cell as one row of the results."""
    excess = [
        one["test_nll"] - other["test_nll"]
        for one, other in zip(mine["seeds"], reference["seeds"], strict=True)
    ]
    return {
        "data": cell.data,
        "n": cell.n,
        "label": cell.label,
        **{name: prediction[name] for name in ("chi2", "kl", "mean_p")},
        **prediction[cell.label],
        "excess": fmean(excess),
        "excess_se": stdev(excess) / len(excess) ** 0.5,
        "excess_by_seed": excess,
        "full_softmax_lr": reference["lr"],
        "full_softmax_test_nll": [one["test_nll"] for one in reference["seeds"]],
        **mine,
    }


def main() -> None:
    """Train what is missing, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/drift_training"))
    work = parser.parse_args().work
    (work / "runs").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = results_of(Lines(work / "cells.jsonl"), work)
    document = {
        "command": "python benchmarks/drift_training.py",
        "versions": {"candid": __version__, "torch": torch.__version__},
        "settings": {
            "seeds": SEEDS,
            "rates": RATES,
            "dim": DIM,
            "epochs": EPOCHS,
            "batches": BATCHES,
            "training": TRAINING,
            "synthetic": SYNTHETIC,
            "rows": ROWS,
            "drift_repeats": REPEATS,
            "bias": asdict(BIAS),
        },
        "data": {data: counts(dataset(data, work)) for data in EPOCHS},
        "cells": rows,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


def counts(data: PreparedDataset) -> dict[str, int]:
    """Return the size of a dataset."""
    targets = int(data.train_counts.sum())
    return {"users": data.num_users, "items": data.num_items, "training_interactions": targets}


if __name__ == "__main__":
    main()
