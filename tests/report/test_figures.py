"""Figures as SVG: the drawn points are the data."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from candid.evaluation import Estimate
from candid.report import (
    Curve,
    calibration,
    interval_bars,
    log_log,
    log_y,
    rank_frequency,
)
from candid.report.figures import COLORS, Panel, line_panels

SVG = "{http://www.w3.org/2000/svg}"


def lines(svg: str, color: str) -> list[np.ndarray]:
    """Return polylines of a colour with at least three points, [points, 2] in drawing units."""
    polylines = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"stroke: {color}" in path.get("style", "") and path.get("clip-path"):
            numbers = [float(x) for x in re.findall(r"-?[\d.]+", path.get("d", ""))]
            polylines.append(np.array(numbers).reshape(-1, 2))
    return [points for points in polylines if len(points) > 2]


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def assert_affine(drawn: np.ndarray, data: np.ndarray) -> None:
    """Check that the drawn points are the data, shifted and scaled per axis (y points down)."""
    for axis, sign in ((0, 1), (1, -1)):
        slope, shift = np.polyfit(data[:, axis], drawn[:, axis], 1)
        assert sign * slope > 0
        np.testing.assert_allclose(slope * data[:, axis] + shift, drawn[:, axis], atol=0.01)


def test_bars_have_the_heights_of_their_values():
    estimates = {
        "ndcg@10": {"none": Estimate(0.1, 0.08, 0.12), "refined": Estimate(0.3, 0.25, 0.35)},
        "recall@10": {"none": Estimate(0.2, None, None), "refined": Estimate(None, None, None)},
    }
    svg = interval_bars(estimates, y_label="value")
    heights = {}
    for color in COLORS[:2]:
        heights[color] = []
        for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
            if f"fill: {color}" in path.get("style", "") and path.get("clip-path"):
                y = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d", ""))[1::2]]
                heights[color].append(max(y) - min(y))
    none, refined = heights[COLORS[0]], heights[COLORS[1]]
    assert none[1] / none[0] == pytest.approx(2.0, rel=1e-3)
    assert refined[0] / none[0] == pytest.approx(3.0, rel=1e-3)
    assert {"ndcg@10", "recall@10", "none", "refined", "value"} <= set(texts(svg))


def test_rank_frequency_is_sorted_normalised_and_log_log():
    svg = rank_frequency({"none": [1, 0, 7, 2]}, y_label="share")
    (drawn,) = lines(svg, COLORS[0])
    assert_affine(drawn, np.log([[1, 2, 3], [0.7, 0.2, 0.1]]).T)


def test_rank_frequency_thins_long_lists():
    counts = np.random.default_rng(0).permutation(np.arange(1.0, 100_001) ** 2)
    svg = rank_frequency({"none": counts}, y_label="share")
    (drawn,) = lines(svg, COLORS[0])
    assert 20 < len(drawn) <= 300
    # Both ends remain: the most frequent and the least frequent item.
    whole = np.ptp(drawn, axis=0)
    assert whole[0] == pytest.approx(np.abs(drawn[-1, 0] - drawn[0, 0]))
    assert whole[1] == pytest.approx(np.abs(drawn[-1, 1] - drawn[0, 1]))
    assert len(svg) < 100_000


def test_calibration_leaves_out_zeros_and_draws_the_diagonal():
    svg = calibration({"none": Curve([0, 0.01, 0.1, 0.5], [0.1, 0.02, 0.1, 0.4])})
    (drawn,) = lines(svg, COLORS[0])
    assert_affine(drawn, np.log([[0.01, 0.1, 0.5], [0.02, 0.1, 0.4]]).T)
    assert "exact" in texts(svg)


def test_figure_has_the_colour_of_the_page_and_is_reproducible():
    curves = {"none": Curve([1, 2], [3, 4])}
    svg = log_y(curves, x_label="x", y_label="y")
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert svg == log_y(curves, x_label="x", y_label="y")
    assert "metadata" not in svg


def test_figures_with_different_data_have_different_ids():
    one = log_y({"none": Curve([1, 2], [3, 4])}, x_label="x", y_label="y")
    two = log_y({"none": Curve([1, 2], [3, 5])}, x_label="x", y_label="y")
    clips = [set(re.findall(r'clipPath id="([^"]+)"', svg)) for svg in (one, two)]
    assert clips[0]
    assert not clips[0] & clips[1]


def test_matplotlib_is_imported_at_the_first_figure():
    code = "import sys, candid.report.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_panels_have_one_legend_and_the_same_color_for_a_series():
    both = Curve([4, 16, 64], [0.1, 0.2, 0.4], [0.01, 0.01, 0.01])
    left = Panel({"none": both, "refined": both}, "candidates n", "NDCG", log_x=True)
    right = Panel({"refined": Curve([1, 2, 5], [1.0, 4.0, 2.0])}, "steps", "NLL", linear_below=0.1)
    svg = line_panels([left, right])
    found = texts(svg)
    assert [found.count(name) for name in ("none", "refined", "NDCG", "NLL", "steps")] == [1] * 5
    assert [name for name in found if name in ("4", "16", "64")][:3] == ["4", "16", "64"]
    drawn = lines(svg, COLORS[1])
    assert len(drawn) == 2
    assert len(lines(line_panels([right], order=("none", "refined")), COLORS[1])) == 1
    assert_affine(drawn[0], np.array([np.log([4, 16, 64]), [0.1, 0.2, 0.4]]).T)


def test_diagonal_is_drawn_where_both_numbers_are_equal():
    curves = {"refined": Curve([0.01, 0.1, 1.0], [0.1, 0.1, 0.1])}
    assert "exact" not in texts(log_log(curves, x_label="x", y_label="y"))
    assert "exact" in texts(log_log(curves, x_label="x", y_label="y", diagonal="exact"))
