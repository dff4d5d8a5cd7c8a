"""Figures: plain data in, a string of SVG out.

Drawn with matplotlib (``pip install 'candid[report]'``). Lines and letters that belong to the
page rather than to the data take the page's own text colour, so that a figure reads on light
and on dark; series differ by colour and by dash or hatch.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from candid.errors import ConfigError
from candid.evaluation import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#8a8f98", "#d9822b", "#3b82c4", "#2f9e77", "#a668c9", "#d1495b")
MARKERS = ("o", "^", "s")
DASHES = ("-", "--", "-", "-.", ":", "--")
_PAGE_INK = "#010203"
"""Stands for the page's text colour while matplotlib draws; replaced by ``currentColor``."""


@dataclass(frozen=True)
class Curve:
    """Points of one series, in order of x."""

    x: Sequence[float]
    y: Sequence[float]


def learning_curves(
    curves: Mapping[str, Curve],
    *,
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """A validation metric against epochs or seconds, one line a run.

    Args:
        curves: by the name of the run.
        x_label: with its unit.
        y_label: the metric.
        reference: name and value of a level to compare with, or None.

    Returns:
        SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure()
    for index, (name, curve) in enumerate(curves.items()):
        axes.plot(curve.x, curve.y, label=name, marker="o", markersize=3, **_style(index))
    if reference is not None:
        _level(axes, *reference)
    return _finish(figure, axes, x_label, y_label)


def interval_bars(
    estimates: Mapping[str, Mapping[str, Estimate]], *, x_label: str = "", y_label: str
) -> str:
    """Bars with confidence intervals, grouped by metric, one bar a run.

    Args:
        estimates: metric -> run -> value; every metric has the same runs.
        x_label: what the groups are.
        y_label: what the bars measure.

    Returns:
        SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure()
    runs = list(next(iter(estimates.values())))
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        found = [by_run[run] for by_run in estimates.values()]
        # None becomes NaN: an undefined value has no bar, a missing interval no whisker.
        value, low, high = np.array([(e.value, e.low, e.high) for e in found], dtype=float).T
        place = np.arange(len(found)) + (index - (len(runs) - 1) / 2) * width
        axes.bar(
            place,
            value,
            width * 0.92,
            label=run,
            color=COLORS[index % len(COLORS)],
            yerr=np.maximum([value - low, high - value], 0.0),
            error_kw={"ecolor": _PAGE_INK, "capsize": 2, "elinewidth": 1},
        )
    axes.set_xticks(np.arange(len(estimates)), list(estimates))
    return _finish(figure, axes, x_label, y_label)


def by_decile(series: Mapping[str, Sequence[float]], *, y_label: str, x_label: str) -> str:
    """A metric for each slice of the catalog, rarest first, one line a run.

    Args:
        series: run -> one value a slice; NaN where a slice has no targets.
        y_label: the metric.
        x_label: what the slices are.

    Returns:
        SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure()
    for index, (name, values) in enumerate(series.items()):
        places = np.arange(1, len(values) + 1)
        axes.plot(places, values, label=name, marker="o", markersize=3, **_style(index))
    axes.set_xticks(np.arange(1, max(map(len, series.values())) + 1))
    return _finish(figure, axes, x_label, y_label)


def rank_frequency(counts: Mapping[str, npt.ArrayLike], *, y_label: str) -> str:
    """How concentrated lists of items are: share of the r-th most frequent item, log-log.

    Args:
        counts: name -> how often each item occurs, in any order; zeros are left out.
        y_label: share of what.

    Returns:
        SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure()
    for index, (name, values) in enumerate(counts.items()):
        found = np.sort(np.asarray(values, dtype=np.float64))[::-1]
        found = found[found > 0] / max(found.sum(), 1.0)
        ranks = _spread(len(found))
        axes.plot(ranks + 1, found[ranks], label=name, **_style(index))
    axes.set_xscale("log")
    axes.set_yscale("log")
    return _finish(figure, axes, "rank of the item", y_label)


def calibration(curves: Mapping[str, Curve], *, y_label: str = "observed frequency") -> str:
    """Observed frequency (y) against predicted probability (x), log-log, with the diagonal.

    Args:
        curves: by the name of the run; points at zero are left out.
        y_label: what the prediction is held against.

    Returns:
        SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure()
    ends: list[float] = []
    for index, (name, curve) in enumerate(curves.items()):
        points = np.array([curve.x, curve.y], dtype=np.float64)
        x, y = points[:, (points > 0).all(axis=0)]
        axes.plot(x, y, label=name, marker="o", markersize=3, **_style(index))
        ends += [*x, *y]
    if ends:
        span = [min(ends), max(ends)]
        axes.plot(span, span, color=_PAGE_INK, linewidth=0.8, linestyle=":", label="exact")
    axes.set_xscale("log")
    axes.set_yscale("log")
    return _finish(figure, axes, "predicted probability", y_label)


def log_log(
    curves: Mapping[str, Curve], *, x_label: str, y_label: str, is_scatter: bool = False
) -> str:
    """Two positive numbers against each other on logarithmic axes, one line a series.

    Args:
        curves: by name; points that are not positive are left out.
        x_label: with its unit.
        y_label: with its unit.
        is_scatter: points alone, not joined.

    Returns:
        SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure()
    for index, (name, curve) in enumerate(curves.items()):
        points = np.array([curve.x, curve.y], dtype=np.float64)
        x, y = points[:, (points > 0).all(axis=0)]
        axes.plot(x, y, label=name, **_marked(index) | ({"linestyle": ""} if is_scatter else {}))
    axes.set_xscale("log")
    axes.set_yscale("log")
    return _finish(figure, axes, x_label, y_label)


def log_y(
    curves: Mapping[str, Curve],
    *,
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """A positive number on a logarithmic axis against another, one line with its points a series.

    Args:
        curves: by name.
        x_label: with its unit.
        y_label: with its unit.
        reference: name and place on the x axis of a level to compare with, or None.

    Returns:
        SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure()
    for index, (name, curve) in enumerate(curves.items()):
        axes.plot(curve.x, curve.y, label=name, **_marked(index))
    if reference is not None:
        name, value = reference
        axes.axvline(value, color=_PAGE_INK, linewidth=0.8, linestyle=":", label=name)
    axes.set_yscale("log")
    return _finish(figure, axes, x_label, y_label)


def _figure() -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "figures need matplotlib, which is not installed: pip install 'candid[report]'"
        ) from None
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    return figure, figure.add_subplot()


def _marked(index: int) -> dict[str, Any]:
    """As ``_style``, with a marker that tells series of one colour apart."""
    marker = MARKERS[index // len(COLORS) % len(MARKERS)]
    return _style(index) | {"marker": marker, "markersize": 4}


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 1.6,
    }


def _level(axes: Axes, name: str, value: float) -> None:
    axes.axhline(value, color=_PAGE_INK, linewidth=0.8, linestyle=":", label=name)


def _spread(count: int) -> npt.NDArray[np.int64]:
    """At most about 300 of ``count`` places, evenly on a logarithmic axis."""
    if count <= 300:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, 300).round().astype(np.int64)) - 1


def _finish(figure: Figure, axes: Axes, x_label: str, y_label: str) -> str:
    import matplotlib

    axes.set_xlabel(x_label, color=_PAGE_INK)
    axes.set_ylabel(y_label, color=_PAGE_INK)
    axes.tick_params(which="both", colors=_PAGE_INK)
    axes.grid(visible=True, color=_PAGE_INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_PAGE_INK)
    axes.legend(frameon=False, labelcolor=_PAGE_INK, fontsize="small")
    # Names inside the drawing come from its data: two figures on a page never share one.
    salt = hashlib.sha256(
        repr([x_label, y_label, *(line.get_xydata() for line in axes.lines)]).encode()
        + repr([patch.get_extents().bounds for patch in axes.patches]).encode()
    ).hexdigest()
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    drawn = stream.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    return drawn.replace(_PAGE_INK, "currentColor").rstrip()
