"""Figures of a study for docs/study.md, from its summary, as SVG in docs/figures.

Differences to ``logq_kept`` against n; the excess NLL against n / chi2 and against the predicted
drift; calibration. ``study_page.py`` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from candid.study import ARMS, ArmRow, GridPoint, StudySummary
from candid.study.arm_curves import ArmCurves
from candid.study.drift_cells import FULL, users_text
from candid.study.tables import REFERENCE

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
INK, GRID = "#6b7280", "#d1d5db"
COLORS = {
    "none": "#c2506b",
    "published_code": "#a668c9",
    "logq_masked": "#d9822b",
    "logq_kept": "#3b82c4",
    "logq_distinct": "#1f9bb5",
    "refined": "#2f9e77",
    FULL: "#8b6f47",
}
OTHER = "#9ca3af"
"""Colour of other arms."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of the datasets, in their order."""
COLUMNS = 3
"""Panels beside each other, one for each dataset, split and tower."""
LINEAR = {"ndcg": 0.005, "nll": 0.02, "excess": 0.02, "drift": 0.01}
"""End of the linear part of an axis around 0. Beyond it is logarithmic, so no point is hidden."""
INCHES_PER_NAME = 1.5
"""Width of a name in a legend."""
MEASURES = {"ndcg": ("NDCG@10", ""), "nll": ("NLL", ", nats")}
"""Name and unit of the metrics."""
Axes = Any


def captions(name: str, summary: StudySummary) -> str:
    """Return the figures of a study with their captions, for the page."""
    lines = []
    for kind, (alt, caption, _) in figures(summary).items():
        lines += [f"![{alt}](figures/{_file(name, kind)})", "", f"*{name}: {caption}*", ""]
    return "\n".join(lines).rstrip()


def draw(name: str, summary: StudySummary, folder: Path = FIGURES) -> list[Path]:
    """Write the figures of a study; return their files."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "candid", "font.family": "sans-serif", "font.size": 8}
    plt.rcParams |= {"svg.fonttype": "none"}
    paths = []
    for kind, (_, _, plot) in figures(summary).items():
        figure = plot(plt)
        paths.append(folder / _file(name, kind))
        figure.savefig(paths[-1], transparent=True, metadata={"Date": None})
        plt.close(figure)
    return paths


def figures(
    summary: StudySummary,
) -> dict[str, tuple[str, str, Callable[[Any], Any]]]:
    """Return text for readers without the figure, caption and function that plots it, by kind."""
    result: dict[str, tuple[str, str, Callable[[Any], Any]]] = {}
    for metric, (label, unit) in MEASURES.items():
        if panels := differences(summary, metric):
            result[metric] = (
                f"Difference in {label} to {REFERENCE} by n, a panel for each dataset",
                f"difference in {label} to `{REFERENCE}` against the number of candidates n, with "
                f"95 % intervals{unit}. Axes are linear up to {LINEAR[metric]:g} around 0, and "
                "logarithmic beyond.",
                lambda plt, p=panels, m=metric: _draw_differences(plt, p, m),
            )
    if summary.drifts:
        known = [one for one in summary.drifts if one.chi2]
        has_errors = all(one.drift_error is not None for one in summary.drifts)
        zeros = "" if has_errors else " Drifts below twice their error are at 0."
        result["excess"] = (
            "Excess NLL over the full softmax by n over chi2, and by predicted drift",
            "NLL over that of the full softmax, against n / chi2 with the median chi2 of the users "
            f"({len(known)} of {len(summary.drifts)} points have one), and against the predicted "
            f"drift, ± standard errors. The dotted line is an excess as predicted.{zeros} "
            f"{users_text(summary.drifts)} Axes of the excess are "
            f"linear up to {LINEAR['excess']:g} around 0, that of the drift up to "
            f"{LINEAR['drift']:g}, and logarithmic beyond.",
            lambda plt: _draw_excess(plt, summary),
        )
    if panels := calibrations(summary):
        bins = [one for arms in panels.values() for arm in arms.values() for one in arm.calibration]
        hidden = sum(one.observed <= 0 for one in bins)
        result["calibration"] = (
            "Share of targets by stated probability, a panel for each dataset",
            "of all pairs of a test user and an item with about the same stated P(item | user), "
            f"the share whose item is the target, at the smallest n of each dataset. {hidden} of "
            f"{len(bins)} points have a share of 0 and no place on the axes.",
            lambda plt, p=panels: _draw_calibration(plt, p),
        )
    return result


def differences(
    summary: StudySummary, metric: str
) -> dict[GridPoint, dict[str, list[tuple[float, float, float, float]]]]:
    """Return n, difference and the ends of its interval, by data and tower, and by arm."""
    panels: dict[GridPoint, dict[str, list[tuple[float, float, float, float]]]] = {}
    for row in summary.rows:
        one = row.metrics.get(metric)
        gap = None if one is None else one.difference
        if gap is None or gap.low is None or gap.high is None or not row.point.num_candidates:
            continue
        lines = panels.setdefault(_any_n(row.point), {})
        values = (row.point.num_candidates, gap.value, gap.low, gap.high)
        lines.setdefault(row.arm, []).append(values)
    for lines in panels.values():
        for values in lines.values():
            values.sort()
    return panels


def calibrations(summary: StudySummary) -> dict[GridPoint, dict[str, ArmCurves]]:
    """Return the curves with a calibration at the smallest n, by data, tower and sampler."""
    found = [one for one in summary.curves if one.calibration]
    smallest: dict[GridPoint, GridPoint] = {}
    for point in sorted({one.point for one in found}):
        if point != point.whole_catalog:
            smallest.setdefault(_any_n(point), point)
    return {
        place: {one.arm: one for one in found if one.point in (point, point.whole_catalog)}
        for place, point in smallest.items()
    }


def _any_n(point: GridPoint) -> GridPoint:
    return replace(point, num_candidates=0)


def _draw_differences(
    plt: Any, panels: Mapping[GridPoint, Mapping[str, Sequence[Any]]], metric: str
) -> Any:
    figure, axes = _panels(plt, panels)
    for place, (point, lines) in zip(axes, panels.items(), strict=True):
        for arm, values in _in_order(lines):
            n, gap, low, high = zip(*values, strict=True)
            place.plot(n, gap, "o-", ms=3, lw=1.2, **_color(arm))
            place.fill_between(n, low, high, alpha=0.15, lw=0, **_color(arm))
        place.axhline(0, color=INK, lw=0.8)
        place.set_xscale("log", base=2)
        place.set_yscale("symlog", linthresh=LINEAR[metric])
        sizes = sorted({values[0] for line in lines.values() for values in line})
        place.set_xticks(sizes, [f"{n:,}" for n in sizes])
        _title(place, point, panels)
    for place in axes[::COLUMNS]:
        name, unit = MEASURES[metric]
        place.set_ylabel(f"{name}: difference{unit}", color=INK)
    _label(figure, [arm for arm in ARMS if any(arm in lines for lines in panels.values())], "n")
    return figure


def _draw_excess(plt: Any, summary: StudySummary) -> Any:
    cells = summary.drifts
    n = _sizes(summary.rows)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharey=True)
    datasets = list(dict.fromkeys(one.point.dataset for one in cells))
    for one in cells:
        marker = MARKERS[datasets.index(one.point.dataset) % len(MARKERS)]
        style = {"fmt": marker, "ms": 4, "lw": 0.8, "alpha": 0.85, **_color(one.arm)}
        if one.chi2:
            ratio = n[one.point, one.arm] / one.chi2
            axes[0].errorbar(ratio, one.excess, one.excess_error, **style)
        axes[1].errorbar(one.drift, one.excess, one.excess_error, one.drift_error, **style)
    end = min(max(one.drift for one in cells), max(one.excess for one in cells))
    axes[1].plot([0, end], [0, end], color=INK, lw=0.8, ls=":")
    for place, label in zip(axes, ("n / chi2", "predicted drift, nats"), strict=True):
        place.set_xlabel(label, color=INK)
        place.set_yscale("symlog", linthresh=LINEAR["excess"])
        _style(place)
    axes[0].set_xscale("log")
    axes[1].set_xscale("symlog", linthresh=LINEAR["drift"])
    axes[0].set_ylabel("NLL over full softmax, nats", color=INK)
    arms = [arm for arm in ARMS if any(one.arm == arm for one in cells)]
    marks = [(arm, "o", _color(arm)["color"]) for arm in arms]
    marks += [(name, MARKERS[i % len(MARKERS)], INK) for i, name in enumerate(datasets)]
    _legend(figure, marks)
    return figure


def _draw_calibration(plt: Any, panels: Mapping[GridPoint, Mapping[str, ArmCurves]]) -> Any:
    figure, axes = _panels(plt, panels)
    for place, (point, arms) in zip(axes, panels.items(), strict=True):
        ends = []
        for arm, one in _in_order(arms):
            points = [(b.stated, b.observed) for b in one.calibration if b.observed > 0]
            if points:
                place.plot(*zip(*points, strict=True), "o-", ms=2.5, lw=1.2, **_color(arm))
                ends += [min(points)[0], max(points)[0]]
        if ends:
            place.plot([min(ends), max(ends)], [min(ends), max(ends)], color=INK, lw=0.8, ls=":")
        place.set(xscale="log", yscale="log")
        _title(place, point, panels)
    for place in axes[::COLUMNS]:
        place.set_ylabel("share that is the target", color=INK)
    names = [arm for arm in ARMS if any(arm in arms for arms in panels.values())]
    _label(figure, names, "stated P(item | user)")
    return figure


def _panels(plt: Any, panels: Mapping[GridPoint, Any]) -> tuple[Any, list[Axes]]:
    """Return a figure with a panel for each dataset, split and tower, and these panels."""
    lines = -(-len(panels) // COLUMNS)
    columns = min(COLUMNS, len(panels))
    size = (3 * columns, 2.4 * lines + 0.4)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    places = list(axes.flat)
    for place in places[len(panels) :]:
        place.set_visible(False)
    for place in places[: len(panels)]:
        _style(place)
    return figure, places[: len(panels)]


def _title(place: Axes, point: GridPoint, panels: Mapping[GridPoint, Any]) -> None:
    """Write the dataset over a panel, with what else differs from the others."""
    parts = [
        getattr(point, name)
        for name in ("dataset", "split", "tower", "sampler")
        if name == "dataset"
        or len({getattr(o, name) for o in panels if o.dataset == point.dataset}) > 1
    ]
    place.set_title(", ".join(parts), color=INK, fontsize=9)


def _style(place: Axes) -> None:
    place.grid(color=GRID, linewidth=0.6)
    place.tick_params(colors=INK, which="both", length=0)
    place.spines[:].set_visible(False)


def _label(figure: Any, arms: Sequence[str], x_label: str) -> None:
    figure.supxlabel(x_label, color=INK, fontsize=9)
    _legend(figure, [(arm, "o", _color(arm)["color"]) for arm in arms])


def _legend(figure: Any, marks: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker=m, ls="", ms=4, color=c, label=name) for name, m, c in marks]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=max(1, min(len(handles), int(figure.get_figwidth() / INCHES_PER_NAME))),
        frameon=False,
        labelcolor=INK,
    )


def _in_order(lines: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(lines.items(), key=lambda one: list(ARMS).index(one[0]))


def _color(arm: str) -> dict[str, str]:
    return {"color": COLORS.get(arm, OTHER)}


def _sizes(rows: Sequence[ArmRow]) -> dict[tuple[GridPoint, str], int]:
    return {(row.point, row.arm): row.candidates_per_row for row in rows}


def _file(name: str, kind: str) -> str:
    return f"study_{name}_{kind}.svg"
