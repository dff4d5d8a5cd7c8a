"""Baselines beside a run: on the targets and the users of its evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from candid.batches import target_counts
from candid.errors import DataError
from candid.evaluation import EvaluationConfig, EvaluationReport
from candid.inference import StageProgress
from candid.runs.run import Run
from candid.runs.splits import role_of

if TYPE_CHECKING:
    from candid.baselines import ModelBesideBaselines

MIN_SECONDS = 10.0
SHARE_OF_TRAINING = 0.05
"""CPU time after a training in which baselines begin: the larger of 10 s and 5 % of its own."""

CHEAP_USERS = 2048
"""Most users that the cheap baselines are measured on after a training."""

CHEAP_ROWS = 30_000_000
"""Interactions of a dataset up to which baselines are measured after a training. ``TrainingRows``
holds 25 bytes for each, and counts of pairs need several times that."""


def beside_baselines(
    run: Run,
    report: EvaluationReport,
    *,
    split: str = "test",
    config: EvaluationConfig | None = None,
    progress: StageProgress | None = None,
) -> ModelBesideBaselines:
    """Tune and measure all baselines on the targets of an evaluation of a run.

    Args:
        run: a trained run.
        report: of ``run.evaluate(split, config)``.
        split: "test" or "validation".
        config: settings of the evaluation; None: those of the run.
        progress: called with (stage, done, total).

    Raises:
        DataError: the dataset has no training interaction or no target to measure.
    """
    return _beside(run, report, split, config or run.config.evaluation, False, progress)


def beside_cheap_baselines(
    run: Run, report: EvaluationReport, *, progress: StageProgress | None = None
) -> ModelBesideBaselines:
    """Measure the cheap baselines with their default settings, after a training.

    The cost is bounded: no tuning, at most 2,048 users (or ``evaluation.validation_users`` if that
    is fewer), and no further baseline begins after the larger of 10 s and 5 % of the training's CPU
    time. A dataset of more than 30,000,000 interactions is refused: baselines hold all of them in
    memory.

    Args:
        run: a trained run.
        report: of ``run.evaluate("test")``.
        progress: called with (stage, done, total).

    Raises:
        DataError: the dataset has too many interactions, or no training interaction or no target to
            measure.
    """
    num_rows = len(run.dataset.item_ids)
    if num_rows > CHEAP_ROWS:
        raise DataError(
            f"baselines hold all {num_rows:,} interactions in memory, and more "
            f"than {CHEAP_ROWS:,} are too many to measure them by default; if memory suffices, "
            f"measure them with: candid evaluate {run.folder} --baselines"
        )
    config = run.config.evaluation
    if config.max_users is None:
        users = min(config.validation_users or CHEAP_USERS, CHEAP_USERS)
        config = config.model_copy(update={"max_users": users})
    return _beside(run, report, "test", config, True, progress)


def _beside(
    run: Run,
    report: EvaluationReport,
    split: str,
    config: EvaluationConfig,
    is_cheap: bool,
    progress: StageProgress | None,
) -> ModelBesideBaselines:
    # Here, because only this function needs scipy.
    from candid.baselines import ModelBesideBaselines, ModelFacts, measure_baselines
    from candid.baselines.beside import CHEAP

    result = run.manifest.get("result") or {}  # a run that was stopped has none
    limit = None
    if is_cheap:
        limit = max(MIN_SECONDS, SHARE_OF_TRAINING * result.get("cpu_seconds", 0))
    results = measure_baselines(
        run.dataset,
        config.model_copy(update={"popularity_slices": 0, "history_slices": ()}),
        role=role_of(split),
        names=CHEAP if is_cheap else None,
        tuning=not is_cheap,
        seconds=limit,
        item_counts=target_counts(run.dataset, run.config.batches),
        needs_history=run.model.needs_history,
        progress=progress,
    )
    facts = ModelFacts(
        reads_history=run.model.reads_history,
        reads_item_features=run.model.reads_item_features,
        is_improving=result.get("best") is not None and result["best_step"] == result["steps"],
        num_users=int(run.dataset.user_is_trained.sum()),
        num_steps=result.get("steps", 0),
    )
    return ModelBesideBaselines.of(report, facts, results)
