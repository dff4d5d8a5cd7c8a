"""The page of the study against its results, and the script that writes it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from candid.study import CLAIMS, StudyCells, summarize

PAGE = (Path(__file__).parents[2] / "docs" / "study.md").read_text()


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("study_page")


@pytest.fixture(scope="module")
def studies(script, tmp_path_factory, planted_studies):
    """The results of a study with a planted counterexample and a failed cell, taken over."""
    folder, target = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("results") / "study"
    arm = planted_studies.PlantedArm
    points = {
        ("popularity", 16): {
            "none": arm(ndcg=-0.1, failed=(2,)),
            "logq_kept": arm(),
            "refined": arm(nll=0.5),
        },
        ("popularity", 64): {"none": arm(ndcg=-0.3), "logq_kept": arm(), "bce": arm(drift=None)},
    }
    planted_studies.PlantedStudy(points, users=100, seeds=6, num_items=500).write(folder)
    summary = summarize(StudyCells(folder)).to_json()
    command = {"command": "candid study small.toml --out small"}
    (folder / "summary.json").write_text(json.dumps(command | summary))
    (folder / "study.json").write_text(json.dumps({"name": "small", "study": {}}))
    script.take_over(folder, target)
    return script.read_studies(target)


@pytest.fixture
def finished(tmp_path, planted_studies):
    """The folder of a small study, and its summary before it is written."""
    arm = planted_studies.PlantedArm
    points = {("popularity", 16): {"logq_kept": arm(), "refined": arm()}}
    planted_studies.PlantedStudy(points, users=20, seeds=2).write(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"name": "small", "study": {}}))
    command = {"command": "candid study my.toml --out here"}
    return tmp_path, command | summarize(StudyCells(tmp_path)).to_json()


def test_take_over_keeps_the_recorded_command(script, finished):
    folder, summary = finished
    (folder / "summary.json").write_text(json.dumps(summary))
    result = json.loads(script.take_over(folder, folder / "results").read_text())
    assert result["command"] == "candid study my.toml --out here"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stale", "summary.json is older than records.jsonl"),
        ("missing", "1 cells missing"),
        ("command", "summary.json has no command"),
        ("prediction", "the verdict on C2 is missing or has another prediction"),
        ("test", "the verdict on C2 is missing or has another prediction"),
        ("claim", "the verdict on C2 is missing or has another prediction"),
    ],
)
def test_take_over_refuses_an_unfinished_or_stale_study(script, finished, fault, message):
    folder, summary = finished
    if fault == "missing":
        summary["rows"][0]["planned"] += 1
    elif fault == "command":
        del summary["command"]
    elif fault == "claim":
        del summary["claims"][1]
    elif fault != "stale":
        summary["claims"][1][fault] = "another"
    (folder / "summary.json").write_text(json.dumps(summary))
    if fault == "stale":
        os.utime(folder / "summary.json", (0, 0))
    with pytest.raises(SystemExit, match=message):
        script.take_over(folder, folder / "results")
    assert not (folder / "results").exists()


def test_verdicts_are_matched_by_name(script, studies):
    (study,) = studies.values()
    turned = study | {"summary": study["summary"] | {"claims": study["summary"]["claims"][::-1]}}
    assert script.verdicts({"small": turned}) == script.verdicts(studies)


def test_page_matches_results(script):
    assert script.with_blocks(PAGE, script.read_studies(), script.read_mechanism()) == PAGE


def test_page_has_every_prediction_with_its_test():
    for claim in CLAIMS:
        for text in (claim.prediction, claim.needs, claim.test):
            assert text in PAGE


def test_claims_without_a_study_are_not_measured(script):
    for block in (script.verdicts, script.differences, script.rates, script.cost):
        assert block({}) == "Not measured yet."


def test_verdicts_name_the_grid_points_against_a_claim(script, studies):
    text = script.verdicts(studies)
    assert "| claim | small |" in text
    assert "**against**: of 2 grid points: supported at 1, against at 1, not decided at 0" in text
    assert "- C1, small, films, time, small, popularity, n = 16: NDCG@10 0." in text
    assert "popularity, n = 64: NDCG" not in text


def test_differences_have_their_p_value_and_interval(script, studies):
    rows = [line for line in script.differences(studies).splitlines() if "n = 16 |" in line]
    assert len(rows) == 2
    _, point, ratio, mean, none, refined, full, _ = map(str.strip, rows[1].split("|"))
    assert point == "films, time, small, popularity, n = 16"
    assert ratio == "2"
    assert " ± " in mean
    for cell, value in ((refined, 0.5), (none, 0.0), (full, 0.0)):
        difference, low, high = (float(one) for one in re.findall(r"[+-]\d\.\d+", cell))
        assert low <= difference <= high
        assert difference == pytest.approx(value, abs=0.01)
    assert ", p < .001 (" in refined


def test_cost_counts_cells_of_the_whole_catalog_once(script, studies):
    lines = script.cost(studies).splitlines()
    assert lines[2].startswith("| small | 41 | 1 | 0 | ")
    assert lines[-1] == (
        "- small, films, time, small, popularity, n = 16, none: the loss is nan at step 3; lower "
        "the learning rate."
    )
    assert "0.01" in script.rates(studies)
