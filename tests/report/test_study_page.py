"""The page of a study."""

from __future__ import annotations

import html
import re

import pytest

from candid.report import study_page
from candid.report.study_page import write_study_page
from candid.study import CLAIMS, StudyCells, summarize
from candid.study.grid import Setting


@pytest.fixture(scope="module")
def folder(tmp_path_factory, planted_studies):
    folder = tmp_path_factory.mktemp("study")
    arm = planted_studies.PlantedArm
    points = {
        ("popularity", n): {
            "none": arm(ndcg=-0.25, nll=1.0, drift=0.8),
            "logq_kept": arm(),
            "refined": arm(nll=4 / n, drift=4 / n),
            "bce": arm(drift=None, failed=(0, 1)),
        }
        for n in (16, 64)
    }
    planted_studies.PlantedStudy(points, users=50, seeds=2, dataset="<films>").write(folder)
    return folder


@pytest.fixture(scope="module")
def drawn():
    """The panels and curves of the figures, by their kind."""
    return {}


@pytest.fixture(scope="module")
def page(folder, drawn):
    return write(folder, drawn)


def write(folder, drawn):
    """Write the page of a study, record what its figures draw, and return the page."""

    def record(kind):
        draw = getattr(study_page, kind)

        def call(content, **settings):
            drawn.setdefault(kind, []).append(content)
            return draw(content, **settings)

        return call

    study = StudyCells(folder)
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("line_panels", "log_log", "calibration"):
            patch.setattr(study_page, kind, record(kind))
        write_study_page(folder / "study.html", "small", study, summarize(study))
    return (folder / "study.html").read_text()


def test_page_shows_claims_figures_and_tables(page):
    assert "Claims" in page
    assert "C5" in page
    assert "no arms to compare with 5 planned seeds" in page
    assert page.count("<svg") == 2 + 1 + 2 * 4  # drift, differences, and two n in detail
    assert "0 of 2; 2 failed" in page
    assert "Failed: bce: the loss is nan at step 3; lower the learning rate." in page
    assert "&lt;films&gt;, time, small, popularity, n = 16" in page
    assert "<films>" not in page
    assert "<script" not in page


def test_excess_is_drawn_against_the_ratio_of_n_and_chi2(page, drawn):
    against_drift, against_chi2 = drawn["log_log"]
    assert against_drift["refined"].x == (4 / 64, 4 / 16)
    assert against_drift["refined"].y == pytest.approx((4 / 64, 4 / 16), abs=0.01)
    assert against_chi2["refined"].x == (16 / 8, 64 / 8)
    assert "full_softmax" not in against_chi2


def test_captions_count_hidden_points_and_users(folder, page):
    cells = summarize(StudyCells(folder)).drifts
    users = "chi2 and the gradient bias are over 256 users, the drift is over 64 of them."
    shown = [one for one in cells if one.excess > 0]
    assert 0 < len(shown) < len(cells) == 6
    by_drift = [one for one in shown if one.drift > 0]
    assert f"{6 - len(by_drift)} of 6 points are not shown: their drift or" in page
    assert f"2 drifts are below twice their error. {users}" in page
    reason = f"{6 - len(shown)} of 6 points are not shown: their excess is not above 0"
    assert f"{reason}, or their chi2 is not known. {users}" in page


def test_changes_of_a_test_are_stated(page):
    for claim in CLAIMS:
        assert html.escape(claim.change, quote=False) in page


def test_rates_at_an_edge_are_marked(folder):
    setting = Setting("<films>", "time", "small", "popularity", 16, "refined")
    for at_edge, number in ((None, 0), ([], 0), ([setting], 1)):
        study = StudyCells(folder, at_edge=at_edge)
        write_study_page(folder / "study.html", "small", study, summarize(study))
        page = (folder / "study.html").read_text()
        assert page.count(">0.01*<") == number
        assert "(*: the smallest or the largest one that its pilot tried" in page


def test_differences_are_drawn_with_their_intervals(page, drawn):
    ndcg, nll = drawn["line_panels"][0]
    assert "logq_kept" not in ndcg.curves
    assert ndcg.curves["none"].x == (16, 64)
    assert ndcg.curves["none"].y == pytest.approx((-0.25, -0.25), abs=0.01)
    assert nll.curves["none"].y == pytest.approx((1, 1), abs=0.01)
    row = re.search(r"none</th>.*?</tr>", page).group()
    value, low, high = map(float, re.findall(r"[+-]\d\.\d{4}", row)[:3])
    assert ndcg.curves["none"].error[0] == pytest.approx(value - low, abs=1.01e-4)
    assert low < value < high


def test_popularity_and_training_curves_are_means_of_the_seeds(page, drawn):
    _, training, popularity, weights, *_ = drawn["line_panels"]
    assert training[0].curves["refined"].x == (50, 100, 200)
    assert training[1].curves["refined"].x == (25, 50, 100)
    ndcg, nll = (panel.curves["none"] for panel in popularity)
    assert len(ndcg.x) == len(nll.x) == 10
    assert ndcg.y[9] == pytest.approx(0.15, abs=0.05)
    assert nll.y[0] > nll.y[9] + 0.8
    assert weights[0].curves["none"].y == pytest.approx((0.9, 0.9, 0.9))
    assert drawn["calibration"][0]["none"].x == pytest.approx((3e-4, 3e-3, 3e-2))
    assert drawn["calibration"][0]["none"].y == pytest.approx((2e-4, 2e-3, 2e-2))


def test_smallest_and_largest_n_of_the_grid_points_with_the_most_arms_are_shown_in_detail(
    tmp_path, planted_studies
):
    arm = planted_studies.PlantedArm
    points = {
        # As many arms as the others, but bce has no finished seed.
        ("popularity", 4): {"none": arm(), "logq_kept": arm(), "bce": arm(failed=(0, 1))},
        ("popularity", 16): {"none": arm(ndcg=-0.1), "logq_kept": arm(), "refined": arm()},
        ("popularity", 64): {"none": arm(ndcg=-0.2), "logq_kept": arm(), "refined": arm()},
        ("popularity", 256): {"none": arm(ndcg=-0.3), "logq_kept": arm(), "refined": arm()},
        ("popularity", 1024): {"none": arm(), "logq_kept": arm()},
    }
    planted_studies.PlantedStudy(points, users=50, seeds=2).write(tmp_path)
    drawn = {}
    page = write(tmp_path, drawn)
    shown = re.findall(r"The next figures show the arms at ([^<]*), each the mean", page)
    assert shown == ["popularity, n = 16", "popularity, n = 256"]
    _, training, popularity, _, training_at_256, popularity_at_256, _ = drawn["line_panels"]
    for n, panels in ((16, training), (256, training_at_256)):
        ndcg = panels[0].curves["none"].y[-1]
        assert ndcg == pytest.approx({16: 0.3, 256: 0.1}[n], abs=0.05)
    assert popularity[0].curves["none"].y[9] == pytest.approx(0.3, abs=0.05)
    assert popularity_at_256[0].curves["none"].y[9] == pytest.approx(0.1, abs=0.05)


def test_more_candidates_than_items_are_drawn_too(tmp_path, planted_studies):
    arm = planted_studies.PlantedArm
    points = {
        ("popularity", n): {"logq_kept": arm(), "refined": arm(nll=0.5, drift=0.5)}
        for n in (16, 1024)
    }
    planted_studies.PlantedStudy(points, users=50, seeds=2, num_items=1000).write(tmp_path)
    drawn = {}
    write(tmp_path, drawn)
    assert drawn["line_panels"][0][1].curves["refined"].x == (16, 1024)
    assert drawn["log_log"][1]["refined"].x == (16 / 8, 1024 / 8)


def test_study_without_a_finished_cell_has_a_page(tmp_path):
    study = StudyCells(tmp_path)
    write_study_page(tmp_path / "study.html", "new", study, summarize(study))
    assert "No main cell has finished yet." in (tmp_path / "study.html").read_text()
