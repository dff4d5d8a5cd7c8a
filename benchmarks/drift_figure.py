"""Tables and figure of predicted drift against the excess likelihood of trained models.

    python benchmarks/drift_figure.py

From the results of ``drift_known_truth.py`` and ``drift_training.py``: the rank correlations and
the cells in docs/benchmarks/estimators.md, and two figures in docs/figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "benchmarks" / "estimators.md"
FIGURES = ROOT / "docs" / "figures"
NAMES = {
    "synthetic": "synthetic",
    "nowplaying": "Nowplaying",
    "retailrocket": "Retailrocket",
    "diginetica": "Diginetica",
    "ml1m": "MovieLens-1M",
}
MEASURES = {
    "drift": "predicted drift, nats",
    "gradient_bias": "bias of the gradient given the positive",
}
COLORS = {
    "refined": "#2f9e77",
    "logq, hits kept": "#3b82c4",
    "logq, hits masked": "#d9822b",
    "published_code": "#a668c9",
    "none": "#c2506b",
}
MARKERS = {"synthetic": "o", "nowplaying": "o", "retailrocket": "s", "diginetica": "^", "ml1m": "s"}
FULL, KEPT = "full softmax", "logq, hits kept"
BASES = {FULL: "full softmax", KEPT: "`logq`, hits kept, same n"}
STUDIES = {"drift_known_truth": (FULL,), "drift_training": (FULL, KEPT)}
"""Results -> what the excess is compared with."""
INK, GRID = "#6b7280", "#d1d5db"
SMALLEST = 1e-4
"""Position of values that are smaller or 0 in the figure."""
Row = dict[str, Any]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values share their mean rank."""
    ranks = pl.DataFrame({"x": x, "y": y}).select(pl.all().rank("average"))
    return float(ranks.select(pl.corr("x", "y")).item())


def measure_of(row: Row, measure: str) -> float:
    """Return a measure of a cell; a drift below twice its error from the samples is 0."""
    if measure == "drift" and row["drift"] < 2 * row["drift_block_se"]:
        return 0.0
    return float(row[measure])


def correlations(rows: Sequence[Row], *, over_kept: bool = False) -> dict[str, Row]:
    """Return the rank correlations of both measures with the excess, for each dataset and all.

    Args:
        rows: the cells.
        over_kept: take the excess over ``logq`` with hits kept at the same n, which has no drift
            and the same number of samples, instead of that over the full softmax.
    """
    if over_kept:
        rows = over_logq_kept(rows)
    groups = {name: [one for one in rows if one["data"] == data] for data, name in NAMES.items()}
    groups["all"] = list(rows)
    return {name: _correlation(group) for name, group in groups.items() if group}


def over_logq_kept(rows: Sequence[Row]) -> list[Row]:
    """Return the other cells, with the excess over ``logq`` with hits kept at the same n."""
    kept = {(one["data"], one["n"]): one for one in rows if one["label"] == KEPT}
    others = []
    for one in rows:
        if one["label"] != KEPT:
            base = kept[one["data"], one["n"]]["excess_by_seed"]
            excess = [
                value - other for value, other in zip(one["excess_by_seed"], base, strict=True)
            ]
            others.append(one | {"excess": fmean(excess), "excess_by_seed": excess})
    return others


def _correlation(rows: Sequence[Row]) -> Row:
    seeds = range(len(rows[0]["excess_by_seed"]))
    result: Row = {"cells": len(rows)}
    for measure in MEASURES:
        values = [measure_of(one, measure) for one in rows]
        by_seed = [
            rank_correlation(values, [one["excess_by_seed"][seed] for one in rows])
            for seed in seeds
        ]
        result[measure] = rank_correlation(values, [one["excess"] for one in rows])
        result[f"{measure}_by_seed"] = by_seed
    return result


def correlation_table(rows: Sequence[Row], bases: Sequence[str]) -> str:
    """Return the table of rank correlations, with the range over the seeds."""
    lines = [
        "| excess NLL over | data | cells | drift | gradient bias given the positive |",
        "|---|---|---|---|---|",
    ]
    for base in bases:
        for name, one in correlations(rows, over_kept=base == KEPT).items():
            values = [
                "–"
                if isnan(one[measure])
                else f"{one[measure]:+.2f} ({min(one[f'{measure}_by_seed']):+.2f} to "
                f"{max(one[f'{measure}_by_seed']):+.2f})"
                for measure in MEASURES
            ]
            lines.append(f"| {BASES[base]} | {name} | {one['cells']} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def cell_table(rows: Sequence[Row]) -> str:
    """Return the table of all cells."""
    lines = [
        "| data | estimator | n | excess NLL, trained | predicted drift | gradient bias |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        numbers = [
            f"{one['excess']:+.3f} ± {one['excess_se']:.3f}",
            f"{one['drift']:+.3f} ± {one['drift_se']:.3f}",
            f"{one['gradient_bias']:.3f}",
        ]
        cells = [NAMES[one["data"]], one["label"], str(one["n"]), *numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_tables(content: str, documents: Mapping[str, Row]) -> str:
    """Return the page with its generated blocks replaced."""
    for study, bases in STUDIES.items():
        rows = documents[study]["cells"]
        for kind, block in (
            ("correlation", correlation_table(rows, bases)),
            ("cells", cell_table(rows)),
        ):
            name = f"{study}-{kind}".replace("_", "-")
            content = with_block(content, name, block)
    return content


def draw(rows: Sequence[Row], bases: Sequence[str], path: Path) -> None:
    """Write a figure: the excess over each base against each measure, logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    plt.rcParams |= {"svg.hashsalt": "candid", "font.family": "sans-serif", "font.size": 9}
    plt.rcParams |= {"svg.fonttype": "none"}
    size = (9, 3.5 * len(bases))
    figure, panels = plt.subplots(
        len(bases), 2, figsize=size, layout="constrained", sharey=True, squeeze=False
    )
    for line, base in zip(panels, bases, strict=True):
        overall = correlations(rows, over_kept=base == KEPT)["all"]
        shown = over_logq_kept(rows) if base == KEPT else rows
        for axes, (measure, label) in zip(line, MEASURES.items(), strict=True):
            for one in shown:
                x = max(measure_of(one, measure), SMALLEST)
                y = max(one["excess"], SMALLEST)
                style = {"color": COLORS[one["label"]], "ms": 5, "alpha": 0.85}
                axes.plot(x, y, MARKERS[one["data"]], **style)
            axes.set(xscale="log", yscale="log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(label, color=INK)
            axes.set_title(f"rank correlation {overall[measure]:.2f}", color=INK, fontsize=10)
            axes.grid(color=GRID, linewidth=0.6)
            axes.tick_params(colors=INK, which="both", length=0)
            axes.spines[:].set_visible(False)
        name = BASES[base].replace("`", "")
        line[0].set_ylabel(f"excess NLL over {name}, nats", color=INK)
    labels, sets = ({one[key] for one in rows} for key in ("label", "data"))
    marks = [(name, "o", color) for name, color in COLORS.items() if name in labels]
    marks += [(NAMES[data], marker, INK) for data, marker in MARKERS.items() if data in sets]
    for name, marker, color in marks:
        panels[0, 1].plot([], [], marker, color=color, ms=5, label=name)
    panels[0, 1].legend(frameon=False, labelcolor=INK, fontsize="small")
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Write the tables and the figures."""
    documents = {study: json.loads((RESULTS / f"{study}.json").read_text()) for study in STUDIES}
    DOCS.write_text(with_tables(DOCS.read_text(), documents))
    for study, bases in STUDIES.items():
        rows = documents[study]["cells"]
        draw(rows, bases, FIGURES / f"{study}.svg")
        print(correlation_table(rows, bases))


if __name__ == "__main__":
    main()
