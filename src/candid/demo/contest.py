"""The demo: one synthetic world, four objectives with one budget, and the truth beside them.

Everything goes the way of a user's own data: files on disk, ``prepare``, ``train_run``,
``evaluate_run``. Only the last column is a privilege of a world that we made ourselves: how
far each model is from the best that any model can reach.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from candid.atomic import write_json
from candid.batches import offsets_of
from candid.config import RunConfig, parse_config
from candid.data import (
    DataConfig,
    HeldOut,
    ItemTableConfig,
    PreparedDataset,
    Role,
    held_out,
    prepare,
)
from candid.demo.measures import calibration_curve, recommended_counts
from candid.demo.page import Contestant, Demonstration, write_page
from candid.demo.truth import TrueModel
from candid.errors import ConfigError
from candid.evaluation import EvaluationReport, evaluate
from candid.runs import MANIFEST, evaluate_run, load_run, train_run
from candid.synthetic import SyntheticConfig, World
from candid.training import Progress

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "none": {"type": "sampled_softmax", "correction": "none"},
    "logq": {"type": "sampled_softmax", "correction": "logq"},
    "refined": {"type": "sampled_softmax", "correction": "refined"},
    "full softmax": {"type": "full_softmax"},
}
"""What is compared, by the name in the table; the full softmax is the reference."""

NUM_CANDIDATES = 256
WORLD = SyntheticConfig(interactions_mean=20.0)
EPOCHS = 4
_K = 10
_CALIBRATION_USERS = 1_000
_MAX_LENGTH = 50


@dataclass(frozen=True)
class DemoResult:
    """What ``run_demo`` leaves.

    Attributes:
        report: the HTML page.
        demonstration: everything the page shows; ``table()`` and ``to_json()`` print it.
    """

    report: Path
    demonstration: Demonstration


def run_demo(
    out: Path,
    *,
    world: SyntheticConfig = WORLD,
    epochs: int = EPOCHS,
    seed: int = 0,
    threads: int | None = None,
    note: Callable[[str], None] = lambda line: None,
    progress: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
) -> DemoResult:
    """Make a world, train each objective with the same budget, compare with the truth.

    Args:
        out: folder for the world, the prepared dataset, the runs, ``demo.json`` and
            ``report.html``; those of an earlier demo in it are replaced.
        world: the world; its mode must be ``softmax``, with all items there from the start.
        epochs: passes over the training data of each run.
        seed: of the runs; the world has its own.
        threads: CPU threads; None: as many as torch chooses.
        note: told what happens, a line at a time.
        progress: makes the progress display of each training run.

    Raises:
        ConfigError: the world is not of mode ``softmax``, or releases items over time; or
            matplotlib is not installed.
        ArtifactError: ``out`` cannot be written.
        Interrupted: stopped by a signal.
    """
    began = time.monotonic()
    if world.mode != "softmax" or world.released_share:
        raise ConfigError(
            "the demo compares with the true vectors: world.mode must be 'softmax' and "
            "world.released_share 0"
        )
    _require_matplotlib()
    made = World(world)
    note(f"making a world of {world.num_users:,} users and {world.num_items:,} items")
    files = made.write(out / "world")
    data = prepare(_data_config(files), out / "data", progress=note).dataset
    truth = TrueModel(made, data)
    contestants = {}
    for name, loss in OBJECTIVES.items():
        note(f"training {name}")
        config = run_config(name, loss, epochs=epochs, seed=seed, threads=threads)
        contestants[name] = _contestant(out / "runs" / config.name, config, data, truth, progress)
    note("asking the truth")
    contestants["truth"] = _the_truth(truth, data, run_config("truth", {"type": "full_softmax"}))
    demonstration = Demonstration(
        contestants=contestants,
        world=world,
        counts=dict(data.manifest["counts"]),
        candidates=NUM_CANDIDATES,
        epochs=epochs,
        seconds=time.monotonic() - began,
    )
    write_json(out / "demo.json", demonstration.to_json())
    report = out / "report.html"
    write_page(report, demonstration, files["interactions"])
    return DemoResult(report, demonstration)


def run_config(
    name: str,
    loss: Mapping[str, Any],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    threads: int | None = None,
) -> RunConfig:
    """The run of one objective: only the loss, and whether it takes candidates, differ."""
    table: dict[str, Any] = {
        "name": name.replace(" ", "-"),
        "seed": seed,
        "device": "cpu",
        "threads": threads,
        "batches": {"batch_size": 64, "max_length": _MAX_LENGTH},
        "model": {
            "query_tower": {
                "type": "causal_transformer",
                "dim": 32,
                "num_blocks": 1,
                "dropout": 0.1,
            },
            "item_tower": {"type": "item_embedding", "dim": 32},
        },
        "loss": loss,
        "training": {
            "epochs": epochs,
            "lr": 5e-3,
            "warmup_steps": 50,
            "schedule": "cosine",
            "patience": None,
            "trackers": ["jsonl"],
        },
        "evaluation": {
            # Users of this world choose items again; the truth knows no filter, so neither do we.
            "filter_seen": False,
            "ks": [_K, 20],
            "metric": f"ndcg@{_K}",
            "validation_users": 4_000,
        },
    }
    if loss["type"] != "full_softmax":
        # A floor: some items of the world are in nobody's training.
        table["sampler"] = {
            "type": "popularity",
            "num_candidates": NUM_CANDIDATES,
            "min_count": 1.0,
        }
    return parse_config(table, "demo")


def _data_config(files: Mapping[str, Path]) -> DataConfig:
    return DataConfig(
        interactions=str(files["interactions"]),
        time="timestamp",
        items=ItemTableConfig(path=str(files["items"]), attributes=("genres",)),
    )


def _contestant(
    folder: Path,
    config: RunConfig,
    data: PreparedDataset,
    truth: TrueModel,
    progress: Callable[[], AbstractContextManager[Progress | None]],
) -> Contestant:
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder)
    with progress() as shown:
        trained = train_run(config, data, folder, progress=shown)
    run = load_run(folder, data)
    report = evaluate_run(run, Role.TEST, true_log_prob=truth.log_prob)
    questions = held_out(data, Role.TEST)
    few = _first(questions, _CALIBRATION_USERS)
    return Contestant(
        report=report,
        recommended=recommended_counts(run.model, data, questions, _MAX_LENGTH, _K),
        calibration=calibration_curve(run.model, truth, data, few, _MAX_LENGTH),
        history=trained.state.history,
        train_seconds=trained.state.train_seconds,
    )


def _the_truth(truth: TrueModel, data: PreparedDataset, config: RunConfig) -> Contestant:
    report: EvaluationReport = evaluate(
        truth,
        data,
        config.evaluation,
        role=Role.TEST,
        max_length=_MAX_LENGTH,
        true_log_prob=truth.log_prob,
    )
    questions = held_out(data, Role.TEST)
    return Contestant(
        report=report,
        recommended=recommended_counts(truth, data, questions, _MAX_LENGTH, _K),
    )


def _first(questions: HeldOut, count: int) -> HeldOut:
    offsets = questions.target_offsets[: count + 1]
    return HeldOut(
        user_ids=questions.user_ids[:count],
        history_stop=questions.history_stop[:count],
        target_ids=questions.target_ids[: offsets[-1]],
        target_offsets=offsets_of(np.diff(offsets)),
    )


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401 - better now than after minutes of training
    except ImportError:
        raise ConfigError(
            "the demo's page needs matplotlib: pip install 'candid[report]'"
        ) from None
