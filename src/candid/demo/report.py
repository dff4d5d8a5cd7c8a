"""Results of the demo as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import rich.table

from candid.batches import Ints
from candid.demo.prediction import Prediction
from candid.demo.regimes import Objective, Regime
from candid.evaluation import Estimate, EvaluationReport
from candid.report import Curve

ORACLE = "oracle"
"""Name of the row of the true distribution."""

COLUMNS = (
    "regime",
    "loss",
    "n",
    "predicted drift",
    "NLL over full softmax",
    "excess NLL",
    "ndcg@10",
    "popularity@10",
)
"""Heads of ``DemoReport.rows``."""


@dataclass(frozen=True)
class ModelResult:
    """One row of the comparison.

    Attributes:
        objective: the loss; None for the oracle.
        report: evaluation on the test split, with the excess NLL.
        recommended_counts: [V], number of users whose top 10 holds each item.
        over_full: NLL minus that of the full softmax, for the same users; None for the oracle.
        calibration: true against predicted probability; None for the oracle.
        train_seconds: seconds of training; None for the oracle.
    """

    objective: Objective | None
    report: EvaluationReport
    recommended_counts: Ints
    over_full: Estimate | None = None
    calibration: Curve | None = None
    train_seconds: float | None = None

    @property
    def name(self) -> str:
        """Name in tables."""
        return ORACLE if self.objective is None else self.objective.name

    @property
    def num_candidates(self) -> int | None:
        """n; None for the full softmax and the oracle."""
        return None if self.objective is None else self.objective.num_candidates

    def value(self, metric: str) -> float | None:
        """Return a metric of the test split."""
        return self.report.metrics[metric].value


@dataclass(frozen=True)
class RegimeReport:
    """The results of one regime.

    Attributes:
        regime: settings of the data.
        counts: of the prepared dataset.
        prediction: drifts and distances at the true distribution.
        models: full softmax, the sampled losses by n, the oracle last.
    """

    regime: Regime
    counts: Mapping[str, int]
    prediction: Prediction
    models: Sequence[ModelResult]

    @property
    def sampled(self) -> list[ModelResult]:
        """The rows with sampled candidates."""
        return [one for one in self.models if one.num_candidates is not None]

    def drift(self, model: ModelResult) -> tuple[float, float] | None:
        """Return predicted drift and standard error in nats; None for the oracle."""
        objective = model.objective
        if objective is None:
            return None
        if objective.estimator is None or objective.num_candidates is None:
            return 0.0, 0.0
        drift = self.prediction.drifts[objective.num_candidates, objective.estimator]
        return drift.mean, drift.error

    def json_rows(self) -> Iterator[dict[str, Any]]:
        """Yield one table of plain values for each model."""
        for model in self.models:
            estimator = None if model.objective is None else model.objective.estimator
            drift, over = self.drift(model), model.over_full or Estimate(None)
            yield {
                "regime": self.regime.name,
                "model": model.name,
                "n": model.num_candidates,
                "correction": None if estimator is None else estimator.correction,
                "accidental_hits": None if estimator is None else estimator.accidental_hits,
                "drift": None if drift is None else drift[0],
                "drift_se": None if drift is None else drift[1],
                "nll_over_full": over.value,
                "nll_over_full_low": over.low,
                "nll_over_full_high": over.high,
                **{name: estimate.value for name, estimate in model.report.metrics.items()},
                "intervals": {
                    name: asdict(estimate) for name, estimate in model.report.metrics.items()
                },
                "train_seconds": model.train_seconds,
            }


@dataclass(frozen=True)
class DemoReport:
    """All results of a demo.

    Attributes:
        regimes: results by regime.
        num_candidates: candidates of a step, each with every correction.
        epochs: passes over the training data in each run.
        seconds: duration of the whole demo.
    """

    regimes: Sequence[RegimeReport]
    num_candidates: Sequence[int]
    epochs: int
    seconds: float

    def rows(self, regime: RegimeReport) -> list[list[str]]:
        """Return cells of ``COLUMNS``: drift ± standard error, metrics ± half of an interval."""
        return [
            [
                regime.regime.name,
                model.name,
                "" if model.num_candidates is None else str(model.num_candidates),
                _drift_cell(regime.drift(model)),
                "" if model.over_full is None else _cell(model.over_full),
                *(
                    _cell(model.report.metrics[metric])
                    for metric in ("excess_nll", "ndcg@10", "popularity@10")
                ),
            ]
            for model in regime.models
        ]

    def table(self) -> rich.table.Table:
        """Return the comparison for the terminal."""
        table = rich.table.Table(
            title="test split, full catalog (± half of a 95 % interval)",
            caption="predicted drift (± standard error): NLL over the full softmax to which the "
            "loss converges, from the true distribution alone; excess NLL: NLL minus that of the "
            "true distribution (the oracle); NLL in nats",
        )
        for index, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if index > 1 else "left")
        for regime in self.regimes:
            for row in self.rows(regime):
                table.add_row(*row)
            table.add_section()
        return table

    def to_json(self) -> dict[str, Any]:
        """Return plain values.

        ``rows`` is a list with one table for each regime and model: ``regime``, ``model``, ``n``,
        ``correction``, ``accidental_hits``, ``drift``, ``drift_se``, ``nll_over_full`` with
        ``_low`` and ``_high``, ``excess_nll``, ``ndcg@10`` and the other metrics, ``intervals``
        {metric: {value, low, high}} and ``train_seconds``. ``regimes`` holds for each regime
        ``synthetic`` (settings of the data), ``counts``, ``mean_p``, ``chi2`` and ``kl``. Further
        keys: ``num_candidates``, ``epochs``, ``seconds``.
        """
        return {
            "rows": [row for regime in self.regimes for row in regime.json_rows()],
            "regimes": {
                one.regime.name: {
                    "synthetic": one.regime.synthetic.model_dump(mode="json"),
                    "counts": dict(one.counts),
                    **one.prediction.to_json(),
                }
                for one in self.regimes
            },
            "num_candidates": list(self.num_candidates),
            "epochs": self.epochs,
            "seconds": round(self.seconds, 1),
        }


def number(value: float | None) -> str:
    """Return a value as text, with an en dash for None."""
    return "–" if value is None else _text(value, decimals=0 if abs(value) >= 10 else 3)


def _text(value: float, decimals: int) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"


def _with_error(value: float, error: float) -> str:
    """Return value and error with the same number of decimals."""
    return f"{number(value)} ±{_text(error, decimals=0 if abs(value) >= 10 else 3)}"


def _cell(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return _with_error(estimate.value, (estimate.high - estimate.low) / 2)


def _drift_cell(drift: tuple[float, float] | None) -> str:
    if drift is None:
        return ""
    return number(drift[0]) if drift[1] == 0 else _with_error(*drift)
