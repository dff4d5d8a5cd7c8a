"""The steps of the demo: write synthetic data, train each objective, compare with the oracle.

The steps are those for any data: files on disk, ``prepare``, ``train_run``, evaluation. Only the
excess NLL, the distance from the best possible model, needs synthetic data.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from candid.atomic import write_json
from candid.batches import offsets_of, target_counts
from candid.config import RunConfig, parse_config
from candid.data import (
    DataConfig,
    HeldOutTargets,
    ItemTableConfig,
    PreparedDataset,
    Role,
    held_out,
    prepare,
)
from candid.demo.metrics import calibration_curve, recommended_counts
from candid.demo.oracle import OracleModel
from candid.demo.page import ORACLE, DemoReport, ModelResult, write_page
from candid.errors import ConfigError
from candid.evaluation import EvaluationReport, evaluate
from candid.losses.correction import COMPARISON_ONLY, corrections_for
from candid.runs import MANIFEST, load_run, train_run
from candid.synthetic import SyntheticConfig, SyntheticData
from candid.training import Progress

OBJECTIVES: Final[Mapping[str, Mapping[str, Any]]] = {
    **{
        correction: {"type": "sampled_softmax", "correction": correction}
        for correction in corrections_for(has_exact=False)
        if correction not in COMPARISON_ONLY
    },
    "full softmax": {"type": "full_softmax"},
}
"""Losses of the compared models, by row of the table; the full softmax is the reference."""

NUM_CANDIDATES = 256
SYNTHETIC = SyntheticConfig(interactions_mean=20.0)
EPOCHS = 4
_K = 10
_CALIBRATION_USERS = 1_000
_MAX_LENGTH = 50


@dataclass(frozen=True)
class DemoResult:
    """The result of ``run_demo``.

    Attributes:
        page: path of the HTML page.
        report: the content of the page; ``table()`` and ``to_json()`` print it.
    """

    page: Path
    report: DemoReport


def run_demo(
    out: Path | str,
    *,
    synthetic: SyntheticConfig = SYNTHETIC,
    epochs: int = EPOCHS,
    seed: int = 0,
    threads: int | None = None,
    note: Callable[[str], None] = lambda line: None,
    progress: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
) -> DemoResult:
    """Train each objective with the same budget on synthetic data and compare with the oracle.

    Args:
        out: folder for the synthetic data, the prepared dataset, the runs, ``demo.json`` and
            ``report.html``; results of an earlier demo in it are replaced.
        synthetic: settings of the data; mode ``softmax`` without release times.
        epochs: passes over the training data in each run.
        seed: of the runs; the data has its own seed.
        threads: CPU threads; None: torch's default.
        note: called with one line of text at each step.
        progress: creates the progress display of each training run.

    Raises:
        ConfigError: the mode is not ``softmax``, or the data has release times.
        ArtifactError: ``out`` cannot be written.
        Interrupted: stopped by a signal.

    Example:
        >>> result = run_demo("candid-demo")  # doctest: +SKIP
        >>> result.report.to_json()["models"].keys()  # doctest: +SKIP
        dict_keys(['none', 'logq', 'refined', 'full softmax', 'oracle'])
    """
    began = time.monotonic()
    out = Path(out)
    if synthetic.mode != "softmax" or synthetic.released_share:
        raise ConfigError(
            "the demo compares with the true vectors; set mode to 'softmax' and released_share to 0"
        )
    generator = SyntheticData(synthetic)
    note(f"writing data of {synthetic.num_users:,} users and {synthetic.num_items:,} items")
    files = generator.write(out / "synthetic")
    dataset = prepare(_data_config(files), out / "data", progress=note).dataset
    oracle = OracleModel(generator, dataset)
    models = {}
    for name, loss in OBJECTIVES.items():
        note(f"training {name}")
        config = run_config(name, loss, epochs=epochs, seed=seed, threads=threads)
        folder = out / "runs" / config.name
        models[name] = _trained_result(folder, config, dataset, oracle, progress)
    note("evaluating the oracle")
    evaluation = run_config(ORACLE, {"type": "full_softmax"})
    models[ORACLE] = _oracle_result(oracle, dataset, evaluation)
    report = DemoReport(
        models=models,
        synthetic=synthetic,
        counts=dict(dataset.manifest["counts"]),
        num_candidates=NUM_CANDIDATES,
        epochs=epochs,
        seconds=time.monotonic() - began,
    )
    write_json(out / "demo.json", report.to_json())
    page = out / "report.html"
    write_page(page, report, files["interactions"])
    return DemoResult(page, report)


def run_config(
    name: str,
    loss: Mapping[str, Any],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    threads: int | None = None,
) -> RunConfig:
    """Return the config of one run; runs differ in the loss and in whether they have a sampler."""
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
            # Synthetic users choose items again, and the true distribution has no filter.
            "filter_seen": False,
            "ks": [_K, 20],
            "metric": f"ndcg@{_K}",
            "validation_users": 4_000,
        },
    }
    if loss["type"] != "full_softmax":
        # min_count 1: some items have no training interaction but must be sampled.
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


def _trained_result(
    folder: Path,
    config: RunConfig,
    dataset: PreparedDataset,
    oracle: OracleModel,
    progress: Callable[[], AbstractContextManager[Progress | None]],
) -> ModelResult:
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder)
    with progress() as display:
        result = train_run(config, dataset, folder, progress=display)
    run = load_run(folder, dataset)
    report = run.evaluate(true_log_prob=oracle.log_prob)
    test = held_out(dataset, Role.TEST)
    first_users = _first_users(test, _CALIBRATION_USERS)
    return ModelResult(
        report=report,
        recommended_counts=recommended_counts(run.model, dataset, test, _MAX_LENGTH, _K),
        calibration=calibration_curve(run.model, oracle, dataset, first_users, _MAX_LENGTH),
        history=result.state.history,
        train_seconds=result.state.train_seconds,
    )


def _oracle_result(oracle: OracleModel, dataset: PreparedDataset, config: RunConfig) -> ModelResult:
    report: EvaluationReport = evaluate(
        oracle,
        dataset,
        config.evaluation,
        role=Role.TEST,
        max_length=_MAX_LENGTH,
        # Slices of the oracle are those of the runs.
        item_counts=target_counts(dataset, config.batches),
        true_log_prob=oracle.log_prob,
    )
    test = held_out(dataset, Role.TEST)
    return ModelResult(
        report=report,
        recommended_counts=recommended_counts(oracle, dataset, test, _MAX_LENGTH, _K),
    )


def _first_users(test: HeldOutTargets, count: int) -> HeldOutTargets:
    offsets = test.target_offsets[: count + 1]
    return HeldOutTargets(
        user_ids=test.user_ids[:count],
        history_stop=test.history_stop[:count],
        target_ids=test.target_ids[: offsets[-1]],
        target_offsets=offsets_of(np.diff(offsets)),
    )
