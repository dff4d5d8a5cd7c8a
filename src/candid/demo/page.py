"""What the demo found, as a table, as JSON and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.table

from candid.batches import Ints
from candid.evaluation import Estimate, EvaluationReport
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

_MEASURES = {
    "ndcg@10": "ndcg@10",
    "recall@10": "recall@10",
    "nll": "NLL",
    "excess_nll": "excess NLL over truth",
    "popularity@10": "popularity@10",
    "coverage@10": "coverage@10",
}


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison.

    Attributes:
        report: evaluation on the test split, with the truth beside it.
        recommended: [V] how often each item is in a user's top 10.
        calibration: true against predicted probability; None for the truth itself.
        history: validation metrics by epoch.
        train_seconds: seconds of training alone; None for the truth.
    """

    report: EvaluationReport
    recommended: Ints
    calibration: Curve | None = None
    history: Sequence[Mapping[str, float]] = field(default=())
    train_seconds: float | None = None


@dataclass(frozen=True)
class Demonstration:
    """Everything that the page shows.

    Attributes:
        contestants: by name, the truth last.
        world: the world they met in.
        counts: of the prepared dataset.
        candidates: candidates of the sampled objectives.
        epochs: passes of each run.
        seconds: of the whole demo.
    """

    contestants: Mapping[str, Contestant]
    world: SyntheticConfig
    counts: Mapping[str, int]
    candidates: int
    epochs: int
    seconds: float

    def rows(self) -> list[list[str]]:
        """The comparison as text: name, measures with half-widths of 95 % intervals, seconds."""
        return [
            [
                name,
                *(_cell(one.report.metrics[measure]) for measure in _MEASURES),
                "" if one.train_seconds is None else f"{one.train_seconds:.0f}",
            ]
            for name, one in self.contestants.items()
        ]

    @property
    def columns(self) -> list[str]:
        """Heads of ``rows``."""
        return ["", *_MEASURES.values(), "training, s"]

    def table(self) -> rich.table.Table:
        """The comparison for the terminal."""
        table = rich.table.Table(title="test, full catalog (± 95 % interval)")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows():
            table.add_row(*row)
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``contestants`` {name: {evaluation, train_seconds}}, ``world``, …."""
        return {
            "contestants": {
                name: {
                    "evaluation": one.report.to_json(),
                    "train_seconds": one.train_seconds,
                    "history": [dict(line) for line in one.history],
                }
                for name, one in self.contestants.items()
            },
            "world": self.world.model_dump(mode="json"),
            "counts": dict(self.counts),
            "candidates": self.candidates,
            "epochs": self.epochs,
            "seconds": round(self.seconds, 1),
        }


def write_page(path: Path, demonstration: Demonstration, interactions: Path) -> None:
    """Write the HTML page, atomically.

    Args:
        path: of the page.
        demonstration: what it shows.
        interactions: the world's file, named in the commands that repeat the demo's steps.

    Raises:
        ArtifactError: the page cannot be written.
        ConfigError: matplotlib is not installed.
    """
    world = demonstration.world
    blocks: list[Block] = [
        Table(
            demonstration.columns,
            demonstration.rows(),
            "Test split, full catalog, nothing filtered; ± half of the 95 % interval over users. "
            "NLL in nats; popularity@10 is the mean training count of the recommended items.",
            emphasis=[list(demonstration.contestants).index("refined")],
        ),
        Paragraph(
            f"The world has {world.num_users:,} users, {world.num_items:,} items of Zipf "
            f"popularity (exponent {world.zipf_exponent:g}) and a next choice that is exactly a "
            "softmax of a dot product plus a popularity bias, drifting with the last "
            f"{world.memory} items. All runs have the same towers, batches, optimizer and "
            f"{demonstration.epochs} passes; the sampled ones draw {demonstration.candidates} "
            "candidates a step by popularity. They differ in the correction alone."
        ),
        *_figures(demonstration),
        Heading("The same with your own data"),
        Paragraph(
            f"candid prepare --interactions {interactions} --user user_id --item item_id "
            "--time timestamp --out prepared\ncandid train --data prepared --out run\n"
            "candid evaluate run",
            code=True,
        ),
    ]
    write_report(path, "candid demo", _summary(demonstration), blocks)


def _summary(demonstration: Demonstration) -> str:
    excess = {
        name: one.report.metrics["excess_nll"].value
        for name, one in demonstration.contestants.items()
        if name != "truth"
    }
    stated = ", ".join(f"{name} {_number(value)}" for name, value in excess.items())
    return (
        "Distance from the best that any model can reach (excess negative log-likelihood over "
        f"the truth, nats): {stated}."
    )


def _figures(demonstration: Demonstration) -> list[Block]:
    contestants = demonstration.contestants
    trained = {name: one for name, one in contestants.items() if name != "truth"}
    truth = contestants["truth"].report.metrics["ndcg@10"].value
    curves = {name: _curve(one.history, "validation/ndcg@10") for name, one in trained.items()}
    bars = {
        metric: {name: one.report.metrics[metric] for name, one in contestants.items()}
        for metric in ("ndcg@10", "recall@10", "ndcg@20", "recall@20")
    }
    deciles, labels = _deciles(contestants)
    return [
        Heading("What the lists are worth"),
        Figure(
            interval_bars(bars, y_label="value"),
            "Ranking metrics on the test split with 95 % intervals over users.",
            "Bars: " + _in_words(contestants, "ndcg@10"),
        ),
        Heading("How they were learned"),
        Figure(
            learning_curves(
                curves,
                x_label="epoch",
                y_label="validation ndcg@10",
                reference=None if truth is None else ("truth (test)", truth),
            ),
            "Validation after each pass over the training data.",
            "Lines of validation ndcg@10 by epoch; final test values: "
            + _in_words(contestants, "ndcg@10"),
        ),
        Heading("Honest probabilities"),
        Figure(
            calibration(
                {name: one.calibration for name, one in trained.items() if one.calibration},
                y_label="mean true probability",
            ),
            "All pairs of 1,000 test users with the catalog, grouped by the probability that the "
            "model gives them. On the diagonal a model says what is so; above it, it says too "
            "little.",
            "Lines of true against predicted probability; excess NLL: "
            + _in_words(contestants, "excess_nll"),
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
                {name: one.recommended for name, one in contestants.items()},
                y_label="share of the top-10 places",
            ),
            "How often the r-th most recommended item is recommended. A line above the truth's on "
            "the left pushes popular items.",
            "Lines of share by rank; mean popularity of the recommended: "
            + _in_words(contestants, "popularity@10"),
        ),
    ]


def _curve(history: Sequence[Mapping[str, float]], metric: str) -> Curve:
    lines = [line for line in history if metric in line]
    return Curve([line["epoch"] for line in lines], [line[metric] for line in lines])


def _deciles(contestants: Mapping[str, Contestant]) -> tuple[dict[str, list[float]], str]:
    slices = {name: one.report.slices["target_popularity"] for name, one in contestants.items()}
    values = {
        name: [_plain(part.metrics["ndcg@10"].value) for part in parts]
        for name, parts in slices.items()
    }
    labels = [part.label for part in next(iter(slices.values()))]
    return values, f"Slices: {labels[0]} to {labels[-1]}."


def _in_words(contestants: Mapping[str, Contestant], metric: str) -> str:
    return ", ".join(
        f"{name} {_number(one.report.metrics[metric].value)}" for name, one in contestants.items()
    )


def _plain(value: float | None) -> float:
    return math.nan if value is None else value


def _cell(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return _number(found.value)
    return f"{_number(found.value)} ±{_number((found.high - found.low) / 2)}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.0f}"
