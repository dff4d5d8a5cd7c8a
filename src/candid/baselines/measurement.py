"""Measurement of baselines: each one fitted, tuned on validation and measured on a split."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from candid.baselines.baseline import Baseline
from candid.baselines.registry import BASELINES
from candid.baselines.training_rows import Floats, TrainingRows, training_rows
from candid.baselines.tuning import Tuned, tune
from candid.component import lookup
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig, EvaluationReport, check_has_relevant, evaluate
from candid.inference import StageProgress, score_batch_size


@dataclass(frozen=True)
class BaselineResult:
    """The measurement of one baseline.

    Attributes:
        name: in the registry.
        settings: chosen settings.
        validation: validation metric of these settings; None where nothing was tuned.
        trials: settings that were measured on validation.
        is_complete: whether tuning tried its whole grid.
        seconds: CPU time of the fits, the tuning and the measurement.
        report: the evaluation on the split.
        model: the fitted baseline.
    """

    name: str
    settings: Mapping[str, Any]
    validation: float | None
    trials: int
    is_complete: bool
    seconds: float
    report: EvaluationReport
    model: Baseline

    @property
    def value(self) -> float:
        """The metric of the evaluation on the split."""
        value = self.report.metrics[self.report.metric].value
        assert value is not None, "check_has_relevant refuses such a split"
        return value


@dataclass(frozen=True)
class BaselineResults:
    """Measurements of several baselines on the same targets, best first.

    Attributes:
        metric: by which they are ranked.
        role: whose targets were predicted.
        tuned_on: number of validation users, or None without tuning.
        results: best first.
        skipped: reason by name of each baseline that could not be fitted or had no time.
    """

    metric: str
    role: Role
    tuned_on: int | None
    results: tuple[BaselineResult, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> BaselineResult | None:
        """The best baseline, None if all were skipped."""
        return self.results[0] if self.results else None


def measure_baselines(
    dataset: PreparedDataset,
    config: EvaluationConfig,
    *,
    role: Role = Role.TEST,
    names: Sequence[str] | None = None,
    tuning: bool = True,
    seconds: float | None = None,
    item_counts: Floats | None = None,
    needs_history: bool = False,
    progress: StageProgress | None = None,
) -> BaselineResults:
    """Fit baselines to the training rows, tune them on validation, and measure them on a split.

    Every baseline reads the whole history of a user. It has the targets, hidden items and ties of
    ``evaluate``. The validation metric is that of ``config.validation_users`` users. A dataset
    without validation targets gives each baseline its default settings.

    Args:
        dataset: the prepared dataset.
        config: settings of the evaluation; its metric is tuned and ranks the baselines.
        role: whose targets are predicted, ``Role.VALIDATION`` or ``Role.TEST``.
        names: of the baselines; None: all that can be fitted. Those that cannot are skipped with
            their reason; a name that is given and cannot be fitted is an error.
        tuning: whether to tune the settings.
        seconds: CPU time after which tuning stops and no further baseline begins; None: no limit.
        item_counts: as for ``evaluate``.
        needs_history: leave out users without a history, as a model does that needs one.
        progress: called with (stage, done, total).

    Raises:
        ConfigError: a name is unknown, or a named baseline cannot be fitted.
        DataError: the dataset has no training interaction, or no target that can be measured.
    """
    for name in names or ():
        lookup(BASELINES, "baseline", name)
    rows = training_rows(dataset)
    check_has_relevant(dataset, config, role, needs_history=needs_history, item_counts=item_counts)
    bounded = _bounded(config, dataset.num_items)
    run = _Measurement(dataset, bounded, role, item_counts, needs_history)
    tuned_on = run.check_validation() if tuning else None
    clock = _Clock(seconds)
    results, skipped = [], {}
    chosen = list(BASELINES) if names is None else list(dict.fromkeys(names))
    for done, name in enumerate(chosen):
        if progress is not None:
            progress(f"measuring {name}", done, len(chosen))
        if done and clock.is_over():
            skipped[name] = f"no time: the limit is {seconds:,.0f} s of CPU time"
            continue
        try:
            results.append(run.result(name, rows, clock, is_tuned=tuned_on is not None))
        except ConfigError as error:
            if names is not None:
                raise
            skipped[name] = str(error)
    results.sort(key=lambda result: -result.value)
    return BaselineResults(config.metric, role, tuned_on, tuple(results), skipped)


def fit_tuned(
    dataset: PreparedDataset,
    name: str,
    config: EvaluationConfig,
    *,
    tuning: bool = True,
    seconds: float | None = None,
) -> Tuned:
    """Fit one baseline to the training rows and tune it on validation, without a measurement.

    Args:
        dataset: the prepared dataset.
        name: of the baseline.
        config: settings of the evaluation; its metric is tuned.
        tuning: whether to tune the settings.
        seconds: CPU time after which tuning stops; None: no limit.

    Raises:
        ConfigError: the name is unknown, or the baseline cannot be fitted.
        DataError: the dataset has no training interaction, or no validation target that can be
            measured.
    """
    lookup(BASELINES, "baseline", name)
    rows = training_rows(dataset)
    run = _Measurement(dataset, _bounded(config, dataset.num_items), Role.VALIDATION, None, False)
    users = run.check_validation() if tuning else None
    return run.tuned(name, rows, _Clock(seconds), is_tuned=users is not None)


class _Clock:
    """CPU time of this process since the start, with an optional limit."""

    def __init__(self, limit: float | None) -> None:
        self._begin, self._limit = time.process_time(), limit

    def is_over(self) -> bool:
        return self._limit is not None and time.process_time() - self._begin > self._limit


@dataclass(frozen=True)
class _Measurement:
    """The fixed inputs of the measurement of several baselines."""

    dataset: PreparedDataset
    config: EvaluationConfig
    role: Role
    item_counts: Floats | None
    needs_history: bool

    def check_validation(self) -> int | None:
        """Return the number of validation users, None if there are no targets to tune on."""
        if not self.dataset.has_role(Role.VALIDATION):
            return None
        queries = check_has_relevant(
            self.dataset,
            self._validation_config,
            Role.VALIDATION,
            needs_history=self.needs_history,
            item_counts=self.item_counts,
        )
        return len(queries)

    def result(
        self, name: str, rows: TrainingRows, clock: _Clock, *, is_tuned: bool
    ) -> BaselineResult:
        begin = time.process_time()
        tuned = self.tuned(name, rows, clock, is_tuned=is_tuned)
        report = self._evaluate(tuned.model, self.config, self.role)
        return BaselineResult(
            name=name,
            settings=tuned.model.config.model_dump(mode="json"),
            validation=tuned.validation,
            trials=tuned.trials,
            is_complete=tuned.is_complete,
            seconds=time.process_time() - begin,
            report=report,
            model=tuned.model,
        )

    def tuned(self, name: str, rows: TrainingRows, clock: _Clock, *, is_tuned: bool) -> Tuned:
        measure: Callable[[Baseline], float] | None = self._validation_metric if is_tuned else None
        return tune(BASELINES[name], rows, measure, is_over=clock.is_over)

    @property
    def _validation_config(self) -> EvaluationConfig:
        k = int(self.config.metric.partition("@")[2])
        return self.config.during_training().model_copy(update={"ks": (k,), "nll": False})

    def _validation_metric(self, model: Baseline) -> float:
        report = self._evaluate(model, self._validation_config, Role.VALIDATION)
        return report.summary()[self.config.metric]

    def _evaluate(self, model: Baseline, config: EvaluationConfig, role: Role) -> EvaluationReport:
        model.needs_history = self.needs_history
        return evaluate(
            model,
            self.dataset,
            config,
            role=role,
            max_length=max(1, int(np.diff(self.dataset.user_offsets).max())),
            item_counts=self.item_counts,
        )


def _bounded(config: EvaluationConfig, num_items: int) -> EvaluationConfig:
    """Limit the batch size so that its rows of scores fit into memory; results do not change."""
    batch_size = score_batch_size(num_items, config.batch_size)
    return config.model_copy(update={"batch_size": batch_size})
