"""Tuning of a baseline on the validation targets, one setting after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from candid.baselines.baseline import Baseline
from candid.baselines.training_rows import TrainingRows
from candid.component import ComponentConfig

Measure = Callable[[Baseline], float]
"""Returns the validation metric of a fitted baseline, larger is better."""


@dataclass(frozen=True)
class Tuned:
    """A baseline with the settings that tuning chose.

    Attributes:
        model: fitted with the best settings.
        validation: its validation metric; None without tuning.
        trials: number of settings that were measured.
        is_complete: whether the whole grid was tried before the time was over.
    """

    model: Baseline
    validation: float | None
    trials: int
    is_complete: bool


def tune(
    baseline: type[Baseline],
    rows: TrainingRows,
    measure: Measure | None,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Fit a baseline with the settings of the best validation metric.

    Coordinate search: the values of one setting are tried with the best ones of the others so
    far, in the order of ``Baseline.grid``, one pass. Of equal values the first one stays.

    Args:
        baseline: class of the baseline.
        rows: training rows.
        measure: validation metric; None: fit the defaults.
        is_over: returns whether to stop before the next trial.

    Raises:
        ConfigError: the baseline cannot be fitted to such data.
    """
    config: Any = baseline.Config()
    best = baseline.fit(rows, config)
    if measure is None:
        return Tuned(best, None, 0, True)
    value, trials = measure(best), 1
    for name, candidates in baseline.grid.items():
        base = best.config
        for candidate in candidates:
            if candidate == getattr(base, name):
                continue
            if is_over():
                return Tuned(best, value, trials, False)
            model = _with(best, rows, base, name, candidate)
            score, trials = measure(model), trials + 1
            if score > value:
                best, value = model, score
    return Tuned(best, value, trials, True)


def _with(
    fitted: Baseline, rows: TrainingRows, base: ComponentConfig, name: str, value: Any
) -> Baseline:
    """Return the baseline with one setting of ``base`` replaced, fitted again if necessary."""
    config = base.model_copy(update={name: value})
    if name in fitted.query_settings:
        return fitted.with_query_settings(config)
    return type(fitted).fit(rows, config)
