"""Figure of the cost of a step and of a loss by size: docs/figures/scaling.svg.

    python benchmarks/tables.py && python benchmarks/loss_kernel.py   # measure
    python benchmarks/scaling.py                                      # draw

Left: a training step over catalogs of 10⁴ to 10⁷ items (results/tables.json). Right: the loss of a
batch against itself, forward and back, B = 256 to 65,536 (results/loss_kernel.json). Both axes of
both panels are logarithmic; a line ends where the next point exceeds the limit of its script.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "figures" / "scaling.svg"
INK, GRID = "#7a8290", "#9aa3b255"
"""Colours that are readable on white and on near-black."""
STEP_ROWS = 1024
STEPS = {
    "dense AdamW": "#9aa3b2",
    "SparseAdam of torch": "#d29922",
    "row_adam": "#2f81f7",
    "row_adagrad": "#3fb950",
}
LOSSES = {
    "plain": "#9aa3b2",
    "plain, bfloat16": "#d29922",
    "float32": "#3fb950",
    "bfloat16": "#2f81f7",
}
Lines = dict[str, list[tuple[float, float]]]


def step_lines(results: list[dict[str, Any]]) -> Lines:
    """Return milliseconds of a step by items in the catalog, a line per rule."""
    return {
        rule: sorted(
            (line["items"], line["ms"])
            for line in results
            if line["rule"] == rule and line["rows"] == STEP_ROWS
        )
        for rule in STEPS
    }


def loss_lines(results: list[dict[str, Any]]) -> Lines:
    """Return milliseconds of an in-batch loss by rows, a line per contender."""
    return {
        name: sorted(
            (line["rows"], line["ms"])
            for line in results
            if line["contender"] == name and line["loss"] == "in-batch"
        )
        for name in LOSSES
    }


def draw(steps: Lines, losses: Lines) -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "candid", "font.family": "sans-serif", "font.size": 9}
    plt.rcParams |= {"svg.fonttype": "none"}
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    about = (
        (steps, STEPS, "items in the catalog", f"a step of {STEP_ROWS:,} rows, ms"),
        (losses, LOSSES, "rows of a batch against itself", "loss, forward and back, ms"),
    )
    for axes, (lines, colors, across, title) in zip(panels, about, strict=True):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), "o-", ms=3.5, color=colors[name], label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(ms for points in lines.values() for _, ms in points) / 3)
        axes.set_xlabel(across, color=INK)
        axes.set_title(title, color=INK, fontsize=10, loc="left")
        axes.grid(color=GRID, linewidth=0.6)
        axes.tick_params(colors=INK, which="both", length=0)
        axes.legend(frameon=False, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, transparent=True, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw the figure from the results."""
    steps, losses = (
        json.loads((RESULTS / f"{name}.json").read_text())["results"]
        for name in ("tables", "loss_kernel")
    )
    draw(step_lines(steps), loss_lines(losses))


if __name__ == "__main__":
    main()
