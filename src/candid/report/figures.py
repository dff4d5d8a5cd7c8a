"""Figures as strings of SVG, drawn with matplotlib.

Axes and labels have the text colour of the page, so that a figure is readable in light and in dark
mode; series differ by colour and by dash. matplotlib is imported at the first figure.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from candid.evaluation import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#8a8f98", "#d9822b", "#3b82c4", "#2f9e77", "#a668c9", "#d1495b")
MARKERS = ("o", "^", "s")
DASHES = ("-", "--", "-", "-.", ":", "--")
SHORT_DECADES = 2.5
"""A logarithmic axis of fewer decades has labels at 2 and 5 too."""
_PAGE_INK = "#010203"
"""Placeholder of the text colour of the page in matplotlib; replaced by ``currentColor``."""


@dataclass(frozen=True)
class Curve:
    """Points of one series, in order of x, with the standard error of y where there is one."""

    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One of several figures side by side, with a line for each series.

    Attributes:
        curves: by name; an error is the half of an interval.
        x_label: with its unit.
        y_label: with its unit.
        log_x: whether the x axis is logarithmic, with a tick at each x.
        linear_below: the y axis is logarithmic beyond this distance from 0; None: linear.
    """

    curves: Mapping[str, Curve]
    x_label: str
    y_label: str
    log_x: bool = False
    linear_below: float | None = None


def interval_bars(
    estimates: Mapping[str, Mapping[str, Estimate]], *, x_label: str = "", y_label: str
) -> str:
    """Draw bars with confidence intervals, grouped by metric, one bar per run.

    Args:
        estimates: metric -> run -> value; every metric has the same runs.
        x_label: name of the groups.
        y_label: name of the values.

    Returns:
        SVG.
    """
    figure, axes = _new_figure()
    runs = list(next(iter(estimates.values())))
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        of_run = [by_run[run] for by_run in estimates.values()]
        # None becomes NaN: an undefined value has no bar, a missing interval no whisker.
        value, low, high = np.array([(e.value, e.low, e.high) for e in of_run], dtype=float).T
        position = np.arange(len(of_run)) + (index - (len(runs) - 1) / 2) * width
        axes.bar(
            position,
            value,
            width * 0.92,
            label=run,
            color=COLORS[index % len(COLORS)],
            yerr=np.maximum([value - low, high - value], 0.0),
            error_kw={"ecolor": _PAGE_INK, "capsize": 2, "elinewidth": 1},
        )
    axes.set_xticks(np.arange(len(estimates)), list(estimates))
    return _finish(figure, axes, x_label, y_label)


def rank_frequency(counts: Mapping[str, npt.ArrayLike], *, y_label: str) -> str:
    """Draw the share of the r-th most frequent item against r, log-log.

    Args:
        counts: name -> number of occurrences of each item, in any order; zeros are left out.
        y_label: name of the share.

    Returns:
        SVG.
    """
    figure, axes = _new_figure()
    for index, (name, values) in enumerate(counts.items()):
        shares = np.sort(np.asarray(values, dtype=np.float64))[::-1]
        shares = shares[shares > 0] / max(shares.sum(), 1.0)
        ranks = _thin_ranks(len(shares))
        axes.plot(ranks + 1, shares[ranks], label=name, **_style(index))
    _set_log(axes, "x", "y")
    return _finish(figure, axes, "rank of the item", y_label)


def calibration(
    curves: Mapping[str, Curve],
    *,
    y_label: str = "observed frequency",
    order: Sequence[str] = (),
) -> str:
    """Draw observed frequency (y) against predicted probability (x), log-log, with the diagonal.

    Args:
        curves: by the name of the run; points at zero are left out.
        y_label: name of the observed values.
        order: names of series in the order of their styles; (): that of the curves.

    Returns:
        SVG.
    """
    figure, axes = _new_figure()
    ends: list[float] = []
    positions = _positions(curves, order)
    for name, curve in curves.items():
        points = np.array([curve.x, curve.y], dtype=np.float64)
        x, y = points[:, (points > 0).all(axis=0)]
        axes.plot(x, y, label=name, marker="o", markersize=3, **_style(positions[name]))
        ends += [*x, *y]
    if ends:
        _plot_diagonal(axes, ends, "exact")
    _set_log(axes, "x", "y")
    return _finish(figure, axes, "predicted probability", y_label)


def log_log(
    curves: Mapping[str, Curve],
    *,
    x_label: str,
    y_label: str,
    is_scatter: bool = False,
    diagonal: str | None = None,
    order: Sequence[str] = (),
) -> str:
    """Draw two positive numbers against each other on logarithmic axes, one line per series.

    Args:
        curves: by name; points that are not positive are left out.
        x_label: with its unit.
        y_label: with its unit.
        is_scatter: draw points without lines.
        diagonal: name of a line where both numbers are equal; None: no such line.
        order: names of series in the order of their styles; (): that of the curves.

    Returns:
        SVG.
    """
    figure, axes = _new_figure()
    ends: list[float] = []
    positions = _positions(curves, order)
    for name, curve in curves.items():
        points = np.array([curve.x, curve.y], dtype=np.float64)
        x, y = points[:, (points > 0).all(axis=0)]
        style = _marked(positions[name]) | ({"linestyle": ""} if is_scatter else {})
        axes.plot(x, y, label=name, **style)
        ends += x.tolist()
    if diagonal is not None and ends:
        _plot_diagonal(axes, ends, diagonal)
    _set_log(axes, "x", "y")
    return _finish(figure, axes, x_label, y_label)


def with_errors(
    curves: Mapping[str, Curve], *, x_label: str, y_label: str, linear_below: float
) -> str:
    """Draw numbers around and above 0 with their standard errors, one line per series.

    Args:
        curves: by name, with errors.
        x_label: of a logarithmic axis.
        y_label: of an axis that is logarithmic above ``linear_below`` and linear around 0.
        linear_below: the end of the linear part.

    Returns:
        SVG.
    """
    figure, axes = _new_figure()
    for index, (name, curve) in enumerate(curves.items()):
        error = curve.error if curve.error is not None else np.zeros(len(curve.y))
        # Series are moved apart, so that the bars of equal values do not cover each other.
        x = np.asarray(curve.x, dtype=np.float64) * 1.03 ** (index - (len(curves) - 1) / 2)
        axes.errorbar(x, curve.y, yerr=error, label=name, capsize=2, **_marked(index))
    _set_log(axes, "x")
    axes.set_yscale("symlog", linthresh=linear_below)
    return _finish(figure, axes, x_label, y_label)


def log_y(
    curves: Mapping[str, Curve],
    *,
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """Draw a positive number on a logarithmic axis against another, one line per series.

    Args:
        curves: by name.
        x_label: with its unit.
        y_label: with its unit.
        reference: name and x position of a vertical line, or None.

    Returns:
        SVG.
    """
    figure, axes = _new_figure()
    for index, (name, curve) in enumerate(curves.items()):
        axes.plot(curve.x, curve.y, label=name, **_marked(index))
    if reference is not None:
        name, value = reference
        axes.axvline(value, color=_PAGE_INK, linewidth=0.8, linestyle=":", label=name)
    _set_log(axes, "y")
    return _finish(figure, axes, x_label, y_label)


def line_panels(panels: Sequence[Panel], *, order: Sequence[str] = ()) -> str:
    """Draw figures side by side, with one legend; a series has the same style in all of them.

    Args:
        panels: from left to right.
        order: names of series in the order of their styles; (): that of the curves.

    Returns:
        SVG.
    """
    figure = _figure(10.2, 4.4)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    positions = _positions(names, order)
    for position, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), position)
        for name, curve in panel.curves.items():
            x = np.asarray(curve.x, dtype=np.float64)
            style = _marked(positions[name])
            if panel.log_x:
                # Series are moved apart, so that their bars do not cover each other.
                x = x * 1.02 ** (names.index(name) - (len(names) - 1) / 2)
            if curve.error is None:
                axes.plot(x, curve.y, label=name, **style)
            else:
                axes.errorbar(x, curve.y, yerr=curve.error, label=name, capsize=2, **style)
        if panel.log_x:
            _set_log(axes, "x")
            ticks = sorted({value for curve in panel.curves.values() for value in curve.x})
            axes.set_xticks(ticks, [f"{value:,g}" for value in ticks])
            axes.minorticks_off()
        if panel.linear_below is not None:
            axes.set_yscale("symlog", linthresh=panel.linear_below)
            axes.axhline(0.0, color=_PAGE_INK, linewidth=0.8, alpha=0.5)
        _style_axes(axes, panel.x_label, panel.y_label)
    by_name = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [by_name[name] for name in names if name in by_name],
        [name for name in names if name in by_name],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        labelcolor=_PAGE_INK,
        fontsize="small",
    )
    return _to_svg(figure, [(panel.x_label, panel.y_label) for panel in panels])


def _positions(names: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """Return the position of each series in the order of styles; unknown ones come last."""
    return {name: index for index, name in enumerate(dict.fromkeys([*order, *names]))}


def _new_figure() -> tuple[Figure, Axes]:
    figure = _figure(7.2, 3.6)
    return figure, figure.add_subplot()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plot_diagonal(axes: Axes, values: Sequence[float], label: str) -> None:
    span = [min(values), max(values)]
    axes.plot(span, span, color=_PAGE_INK, linewidth=0.8, linestyle=":", label=label)


def _set_log(axes: Axes, *names: Literal["x", "y"]) -> None:
    """Make axes logarithmic, with labels at 1, 2 and 5 over short ranges."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    axes.set(**{f"{name}scale": "log" for name in names})
    for name in names:
        axis = axes.xaxis if name == "x" else axes.yaxis
        low, high = axis.get_data_interval()
        is_short = low > 0 and np.log10(high / low) < SHORT_DECADES
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
        axis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
        axis.set_minor_formatter(NullFormatter())


def _marked(index: int) -> dict[str, Any]:
    """Return ``_style`` with a marker, which distinguishes series of the same colour."""
    marker = MARKERS[index // len(COLORS) % len(MARKERS)]
    return _style(index) | {"marker": marker, "markersize": 4}


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 1.6,
    }


def _thin_ranks(count: int) -> npt.NDArray[np.int64]:
    """Return at most about 300 of ``count`` ranks, evenly spaced on a logarithmic axis."""
    if count <= 300:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, 300).round().astype(np.int64)) - 1


def _finish(figure: Figure, axes: Axes, x_label: str, y_label: str) -> str:
    _style_axes(axes, x_label, y_label)
    axes.legend(frameon=False, labelcolor=_PAGE_INK, fontsize="small")
    return _to_svg(figure, [x_label, y_label])


def _style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=_PAGE_INK)
    axes.set_ylabel(y_label, color=_PAGE_INK)
    axes.tick_params(which="both", colors=_PAGE_INK)
    axes.grid(visible=True, color=_PAGE_INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_PAGE_INK)


def _to_svg(figure: Figure, labels: Sequence[object]) -> str:
    import matplotlib

    # Element ids are derived from the data, so that two figures on a page do not share one.
    lines = [line.get_xydata() for axes in figure.axes for line in axes.lines]
    bars = [patch.get_extents().bounds for axes in figure.axes for patch in axes.patches]
    salt = hashlib.sha256(repr([*labels, *lines]).encode() + repr(bars).encode()).hexdigest()
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return svg.replace(_PAGE_INK, "currentColor").rstrip()
