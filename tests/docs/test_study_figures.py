"""Figures of the study: what they draw, what they count as hidden, and their captions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from candid.study import StudyCells, StudySummary, summarize
from candid.study.records import CalibrationBin

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("study_figures")


@pytest.fixture(scope="module")
def summary(tmp_path_factory, planted_studies):
    folder = tmp_path_factory.mktemp("study")
    arm = planted_studies.PlantedArm
    points = {
        ("popularity", n): {
            "logq_kept": arm(),
            "refined": arm(nll=4 / n, drift=3 / n),
            "none": arm(ndcg=-0.2, drift=None),
        }
        for n in (64, 16)
    }
    for dataset in ("films", "songs"):
        planted_studies.PlantedStudy(points, dataset=dataset, users=60, seeds=2).write(folder)
    return summarize(StudyCells(folder))


def test_differences_are_in_the_order_of_n_with_their_intervals(script, summary):
    panels = script.differences(summary, "nll")
    assert [(point.dataset, point.num_candidates) for point in panels] == [
        ("films", 0),
        ("songs", 0),
    ]
    for lines in panels.values():
        assert lines.keys() == {"refined", "none", "full_softmax"}
        assert [n for n, *_ in lines["refined"]] == [16, 64]
        for n, value, low, high in lines["refined"]:
            assert low < value < high
            assert value == pytest.approx(4 / n, abs=0.01)


def test_calibration_is_that_of_the_smallest_n_and_of_the_whole_catalog(script, summary):
    panels = script.calibrations(summary)
    assert len(panels) == 2
    for point, arms in panels.items():
        assert {one.point.dataset for one in arms.values()} == {point.dataset}
        assert {arm: one.point.num_candidates for arm, one in arms.items()} == {
            "refined": 16,
            "none": 16,
            "logq_kept": 16,
            "full_softmax": 0,
        }


def test_captions_count_what_the_axes_cannot_show(script, summary):
    bins = (CalibrationBin(0.0, 0.1, 5, 0.01, 0.0), CalibrationBin(0.1, 1.0, 5, 0.2, 0.1))
    curves = tuple(replace(one, calibration=bins) for one in summary.curves)
    text = script.captions("small", replace(summary, curves=curves))
    assert "8 of 16 points have a share of 0 and no place on the axes." in text
    assert "(8 of 8 points have one)" in text
    assert "the drift is over 64 of them." in text
    assert "are at 0" not in text
    earlier = replace(
        summary, drifts=tuple(replace(one, drift_error=None) for one in summary.drifts), curves=()
    )
    text = script.captions("small", earlier)
    assert "Drifts below twice their error are at 0." in text
    assert "calibration" not in text


def test_figures_of_a_study_are_drawn_from_its_json(script, summary, tmp_path):
    read = StudySummary.from_json(json.loads(json.dumps(summary.to_json())))
    paths = script.draw("small", read, tmp_path)
    kinds = ("ndcg", "nll", "excess", "calibration")
    assert [path.name for path in paths] == [f"study_small_{kind}.svg" for kind in kinds]
    text = script.captions("small", read)
    for path in paths:
        assert f"(figures/{path.name})" in text
        content = path.read_text()
        assert content.count("refined") == 1  # in the legend
        assert "songs" in content
    again = tmp_path / "again"
    again.mkdir()
    for path, other in zip(paths, script.draw("small", read, again), strict=True):
        assert path.read_bytes() == other.read_bytes()


def test_figures_of_the_page_are_there(script, benchmark_script):
    page = benchmark_script("study_page")
    for name, study in page.read_studies().items():
        for kind in script.figures(StudySummary.from_json(study["summary"])):
            assert (FIGURES / f"study_{name}_{kind}.svg").is_file()
