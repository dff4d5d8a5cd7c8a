"""Results of the demo as a table, as JSON and as an HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.table

from candid.batches import Ints
from candid.evaluation import Estimate, EvaluationReport
from candid.losses.correction import DEFAULT_CORRECTION
from candid.report import (
    Curve,
    Figure,
    Heading,
    Paragraph,
    Table,
    by_decile,
    calibration,
    interval_bars,
    learning_curves,
    rank_frequency,
    write_report,
)
from candid.report.html import Block
from candid.synthetic import SyntheticConfig

ORACLE = "oracle"
"""Name of the row of the true distribution."""

_METRICS = {
    "ndcg@10": "ndcg@10",
    "recall@10": "recall@10",
    "nll": "NLL",
    "excess_nll": "excess NLL",
    "popularity@10": "popularity@10",
    "coverage@10": "coverage@10",
}
"""Column heads by metric of the evaluation."""


@dataclass(frozen=True)
class ModelResult:
    """One row of the comparison.

    Attributes:
        report: evaluation on the test split, with the excess NLL.
        recommended_counts: [V], number of users whose top 10 holds each item.
        calibration: true against predicted probability; None for the oracle.
        history: validation metrics by epoch.
        train_seconds: seconds of training without evaluation; None for the oracle.
    """

    report: EvaluationReport
    recommended_counts: Ints
    calibration: Curve | None = None
    history: Sequence[Mapping[str, float]] = field(default=())
    train_seconds: float | None = None


@dataclass(frozen=True)
class DemoReport:
    """All results of a demo.

    Attributes:
        models: result by name, the oracle last.
        synthetic: settings of the data.
        counts: of the prepared dataset.
        num_candidates: candidates per step of the sampled objectives.
        epochs: passes over the training data in each run.
        seconds: duration of the whole demo.
    """

    models: Mapping[str, ModelResult]
    synthetic: SyntheticConfig
    counts: Mapping[str, int]
    num_candidates: int
    epochs: int
    seconds: float

    def rows(self) -> list[list[str]]:
        """Return cells: name, metrics with half-widths of 95 % intervals, training seconds."""
        return [
            [
                name,
                *(_cell(result.report.metrics[metric]) for metric in _METRICS),
                "" if result.train_seconds is None else f"{result.train_seconds:.0f}",
            ]
            for name, result in self.models.items()
        ]

    @property
    def columns(self) -> list[str]:
        """Heads of ``rows``."""
        return ["", *_METRICS.values(), "training, s"]

    def table(self) -> rich.table.Table:
        """Return the comparison for the terminal."""
        table = rich.table.Table(
            title="test split, full catalog (± 95 % interval)",
            caption="excess NLL: NLL minus that of the true distribution (the oracle)",
        )
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows():
            table.add_row(*row)
        return table

    def to_json(self) -> dict[str, Any]:
        """Return plain values.

        ``models`` {name: {evaluation, train_seconds, history}}, ``synthetic`` (settings of the
        data), ``counts``, ``num_candidates``, ``epochs`` and ``seconds``.
        """
        return {
            "models": {
                name: {
                    "evaluation": result.report.to_json(),
                    "train_seconds": result.train_seconds,
                    "history": [dict(line) for line in result.history],
                }
                for name, result in self.models.items()
            },
            "synthetic": self.synthetic.model_dump(mode="json"),
            "counts": dict(self.counts),
            "num_candidates": self.num_candidates,
            "epochs": self.epochs,
            "seconds": round(self.seconds, 1),
        }


def write_page(path: Path, report: DemoReport, interactions: Path) -> None:
    """Write the HTML page, atomically.

    Args:
        path: of the page.
        report: the results.
        interactions: file of the synthetic interactions, named in the commands on the page.

    Raises:
        ArtifactError: the page cannot be written.
    """
    synthetic = report.synthetic
    blocks: list[Block] = [
        Table(
            report.columns,
            report.rows(),
            "Test split, full catalog, seen items not filtered; ± half of the 95 % interval over "
            "users. NLL in nats; excess NLL is the NLL minus that of the true distribution (the "
            "oracle); popularity@10 is the mean training count of the recommended items.",
            emphasis=[list(report.models).index(DEFAULT_CORRECTION)],
        ),
        Paragraph(
            f"The data has {synthetic.num_users:,} users and {synthetic.num_items:,} items with "
            f"Zipf popularity (exponent {synthetic.zipf_exponent:g}). The next choice follows a "
            "softmax of a dot product plus a popularity bias, and depends on the last "
            f"{synthetic.history_length} items. All runs have the same towers, batches, "
            f"optimizer and number of epochs ({report.epochs}). The sampled runs have "
            f"{report.num_candidates} candidates per step, sampled by popularity, and differ only "
            "in the correction."
        ),
        *_figures(report),
        Heading("Run the same steps on your own data"),
        Paragraph(
            f"candid prepare --interactions {interactions} --user user_id --item item_id "
            "--time timestamp --out prepared\ncandid train --data prepared --out run\n"
            "candid evaluate run",
            code=True,
        ),
    ]
    write_report(path, "candid demo", _summary(report), blocks)


def _summary(report: DemoReport) -> str:
    excess = ", ".join(
        f"{name} {_number(result.report.metrics['excess_nll'].value)}"
        for name, result in _trained(report.models).items()
    )
    return (
        "Distance from the best possible model (negative log-likelihood minus that of the true "
        f"distribution, nats): {excess}."
    )


def _figures(report: DemoReport) -> list[Block]:
    models = report.models
    trained = _trained(models)
    oracle_ndcg = models[ORACLE].report.metrics["ndcg@10"].value
    curves = {name: _curve(one.history, "validation/ndcg@10") for name, one in trained.items()}
    bars = {
        metric: {name: one.report.metrics[metric] for name, one in models.items()}
        for metric in ("ndcg@10", "recall@10", "ndcg@20", "recall@20")
    }
    deciles, labels = _deciles(models)
    return [
        Heading("Ranking quality"),
        Figure(
            interval_bars(bars, y_label="value"),
            "Ranking metrics on the test split with 95 % intervals over users.",
            "Bars: " + _as_text(models, "ndcg@10"),
        ),
        Heading("Training"),
        Figure(
            learning_curves(
                curves,
                x_label="epoch",
                y_label="validation ndcg@10",
                reference=None if oracle_ndcg is None else ("oracle (test)", oracle_ndcg),
            ),
            "Validation metric after each pass over the training data.",
            "Lines of validation ndcg@10 by epoch; final test values: "
            + _as_text(models, "ndcg@10"),
        ),
        Heading("Calibration"),
        Figure(
            calibration(
                {name: one.calibration for name, one in trained.items() if one.calibration},
                y_label="mean true probability",
            ),
            "All pairs of 1,000 test users and the catalog, grouped by predicted probability. On "
            "the diagonal the predictions are correct; above it they are too low.",
            "Lines of true against predicted probability; excess NLL: "
            + _as_text(models, "excess_nll"),
        ),
        Heading("Popular and rare items"),
        Figure(
            by_decile(
                deciles, x_label="slice of the target items, rarest first", y_label="ndcg@10"
            ),
            "ndcg@10 by popularity of the target; each slice has about the same share of the "
            "training interactions. " + labels,
            "Lines of ndcg@10 by popularity of the target item.",
        ),
        Figure(
            rank_frequency(
                {name: one.recommended_counts for name, one in models.items()},
                y_label="share of the top-10 places",
            ),
            "Share of the r-th most recommended item. A line above the oracle's on the left means "
            "that popular items are recommended too often.",
            "Lines of share by rank; mean popularity of the recommended items: "
            + _as_text(models, "popularity@10"),
        ),
    ]


def _trained(models: Mapping[str, ModelResult]) -> dict[str, ModelResult]:
    return {name: result for name, result in models.items() if name != ORACLE}


def _curve(history: Sequence[Mapping[str, float]], metric: str) -> Curve:
    lines = [line for line in history if metric in line]
    return Curve([line["epoch"] for line in lines], [line[metric] for line in lines])


def _deciles(models: Mapping[str, ModelResult]) -> tuple[dict[str, list[float]], str]:
    slices = {name: one.report.slices["target_popularity"] for name, one in models.items()}
    values = {
        name: [_nan_if_none(part.metrics["ndcg@10"].value) for part in parts]
        for name, parts in slices.items()
    }
    labels = [part.label for part in next(iter(slices.values()))]
    return values, f"Slices: {labels[0]} to {labels[-1]}."


def _as_text(models: Mapping[str, ModelResult], metric: str) -> str:
    return ", ".join(
        f"{name} {_number(one.report.metrics[metric].value)}" for name, one in models.items()
    )


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value


def _cell(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)} ±{_number((estimate.high - estimate.low) / 2)}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.0f}"
