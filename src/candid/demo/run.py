"""The steps of the demo: write synthetic data, train each loss, compare with the oracle.

The steps are those for any data: files on disk, ``prepare``, ``train_run``, evaluation. Only the
excess NLL and the predicted drift need a known true distribution.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from candid.atomic import remove_folder, write_json
from candid.batches import offsets_of, target_counts
from candid.config import RunConfig
from candid.data import (
    DataConfig,
    HeldOutTargets,
    ItemTableConfig,
    PreparedDataset,
    Role,
    held_out,
    prepare_folder,
)
from candid.demo.metrics import calibration_curve, recommended_counts
from candid.demo.oracle import OracleModel
from candid.demo.page import write_page
from candid.demo.prediction import predict
from candid.demo.regimes import (
    EPOCHS,
    ESTIMATORS,
    MAX_LENGTH,
    NUM_CANDIDATES,
    REGIMES,
    K,
    Objective,
    Regime,
    objectives,
    run_config,
)
from candid.demo.report import DemoReport, ModelResult, RegimeReport, number
from candid.errors import ConfigError, Interrupted
from candid.evaluation import Estimate, compare, evaluate
from candid.runs import MANIFEST, load_run, train_run
from candid.runs.build import set_threads
from candid.synthetic import SyntheticConfig, SyntheticData

_CALIBRATION_USERS = 1_000


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
    regimes: Sequence[Regime] = REGIMES,
    num_candidates: Sequence[int] = NUM_CANDIDATES,
    epochs: int = EPOCHS,
    seed: int = 0,
    threads: int = 1,
    note: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Train each loss with the same budget on synthetic data and compare with the oracle.

    Args:
        out: folder for ``demo.json``, ``report.html``, and for each regime a folder with the
            synthetic data, the prepared dataset and the runs; results of an earlier demo in it are
            replaced.
        regimes: settings of the data; mode ``softmax`` without release times.
        num_candidates: n of the sampled losses.
        epochs: passes over the training data in each run.
        seed: of the runs and of the predictions; the data has its own seed.
        threads: CPU threads of torch, also after the call. The models are small: one thread is
            nearly as fast as two, and the results do not depend on the number of cores.
        note: called with one line of text at each step.

    Raises:
        ConfigError: the mode is not ``softmax``, the data has release times, or there is no
            regime or number of candidates.
        ArtifactError: ``out`` cannot be written.
        Interrupted: stopped by a signal.

    Example:
        >>> result = run_demo("candid-demo")  # doctest: +SKIP
        >>> result.report.to_json()["rows"][1]["correction"]  # doctest: +SKIP
        'none'
    """
    began = time.monotonic()
    out = Path(out)
    set_threads(threads)
    for regime in regimes:
        _check(regime.synthetic)
    if not regimes:
        raise ConfigError("the demo needs at least one regime, got none")
    if not num_candidates:
        raise ConfigError("the demo needs at least one number of candidates, got none")
    budget = _Budget(num_candidates, epochs, seed, threads)
    reports = [_run_regime(regime, out / regime.name, budget, note) for regime in regimes]
    report = DemoReport(
        regimes=reports,
        num_candidates=tuple(num_candidates),
        epochs=epochs,
        seconds=time.monotonic() - began,
    )
    write_json(out / "demo.json", report.to_json())
    page = out / "report.html"
    write_page(page, report, out / regimes[0].name / "synthetic" / "interactions.parquet")
    return DemoResult(page, report)


@dataclass(frozen=True, slots=True)
class _Budget:
    """Settings that all regimes share."""

    num_candidates: Sequence[int]
    epochs: int
    seed: int
    threads: int

    def run_config(self, objective: Objective) -> RunConfig:
        return run_config(objective, epochs=self.epochs, seed=self.seed, threads=self.threads)


def _run_regime(
    regime: Regime, folder: Path, budget: _Budget, note: Callable[[str], None]
) -> RegimeReport:
    synthetic, name = regime.synthetic, regime.name
    note(f"{name}: writing data of {synthetic.num_users:,} users and {synthetic.num_items:,} items")
    generator = SyntheticData(synthetic)
    files = generator.write(folder / "synthetic")
    dataset = prepare_folder(_data_config(files), folder / "data").dataset
    oracle = OracleModel(generator, dataset)
    note(f"{name}: predicting the drift of each correction from the true distribution")
    prediction = predict(synthetic, budget.num_candidates, ESTIMATORS, seed=budget.seed)
    models: list[ModelResult] = []
    trained = objectives(budget.num_candidates)
    for count, objective in enumerate(trained, start=1):
        result = _trained_result(objective, folder / "runs", budget, dataset, oracle)
        over_full = Estimate(0.0)
        if models:  # The full softmax is the first.
            compared = compare(result.report, models[0].report, "nll")
            over_full = Estimate(compared.difference, compared.low, compared.high)
        models.append(replace(result, over_full=over_full))
        size = "" if result.num_candidates is None else f", n = {result.num_candidates}"
        note(
            f"{name}, run {count} of {len(trained)}: {objective.name}{size}: "
            f"excess NLL {number(result.value('excess_nll'))}, "
            f"ndcg@10 {number(result.value('ndcg@10'))}"
        )
    models.append(_oracle_result(oracle, dataset, budget.run_config(Objective())))
    return RegimeReport(regime, dict(dataset.manifest["counts"]), prediction, models)


def _trained_result(
    objective: Objective,
    runs: Path,
    budget: _Budget,
    dataset: PreparedDataset,
    oracle: OracleModel,
) -> ModelResult:
    folder = runs / objective.folder
    if (folder / MANIFEST).exists():
        remove_folder(folder)
    try:
        result = train_run(budget.run_config(objective), dataset, folder)
    except Interrupted as error:
        raise Interrupted("the demo was stopped: run the same command to start again") from error
    run = load_run(folder, dataset)
    test = held_out(dataset, Role.TEST)
    first_users = _first_users(test, _CALIBRATION_USERS)
    return ModelResult(
        objective,
        report=run.evaluate(true_log_prob=oracle.log_prob),
        recommended_counts=recommended_counts(run.model, dataset, test, MAX_LENGTH, K),
        calibration=calibration_curve(run.model, oracle, dataset, first_users, MAX_LENGTH),
        train_seconds=result.state.train_seconds,
    )


def _oracle_result(oracle: OracleModel, dataset: PreparedDataset, config: RunConfig) -> ModelResult:
    report = evaluate(
        oracle,
        dataset,
        config.evaluation,
        role=Role.TEST,
        max_length=MAX_LENGTH,
        # Slices of the oracle are those of the runs.
        item_counts=target_counts(dataset, config.batches),
        true_log_prob=oracle.log_prob,
    )
    test = held_out(dataset, Role.TEST)
    counts = recommended_counts(oracle, dataset, test, MAX_LENGTH, K)
    return ModelResult(None, report=report, recommended_counts=counts)


def _check(synthetic: SyntheticConfig) -> None:
    if synthetic.mode != "softmax" or synthetic.released_share:
        raise ConfigError(
            "the demo compares with the true vectors; set mode to 'softmax' and released_share to 0"
        )


def _data_config(files: Mapping[str, Path]) -> DataConfig:
    return DataConfig(
        interactions=str(files["interactions"]),
        time="timestamp",
        items=ItemTableConfig(path=str(files["items"]), attributes=("genres",)),
    )


def _first_users(test: HeldOutTargets, count: int) -> HeldOutTargets:
    offsets = test.target_offsets[: count + 1]
    return HeldOutTargets(
        user_ids=test.user_ids[:count],
        history_stop=test.history_stop[:count],
        target_ids=test.target_ids[: offsets[-1]],
        target_offsets=offsets_of(np.diff(offsets)),
    )
