"""The page of the study against its results, and the script that writes it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from candid.study import CLAIMS, StudyCells, summarize
from candid.study.summary import records_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text()
UNMEASURED = ("so far", "not confirmed it yet", "Not measured yet.")
"""Words of the page before the study has results."""


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
            "refined": arm(nll=0.5, drift=0.4, gradient_bias=0.2),
        },
        ("popularity", 64): {"none": arm(ndcg=-0.3), "logq_kept": arm(), "bce": arm(drift=None)},
    }
    planted_studies.PlantedStudy(points, users=100, seeds=6, num_items=500).write(folder)
    (folder / "summary.json").write_text(json.dumps(summary_of(folder)))
    (folder / "study.json").write_text(json.dumps({"name": "small", "study": {}}))
    script.take_over(folder, target)
    return script.read_studies(target)


def summary_of(folder):
    """Return the content of ``summary.json``, as the command line writes it."""
    cells = StudyCells(folder)
    return {
        "command": "candid study my.toml --out here",
        "records": records_table(cells.records),
        **summarize(cells).to_json(),
    }


@pytest.fixture
def finished(tmp_path, planted_studies):
    """The folder of a small study, and its summary before it is written."""
    arm = planted_studies.PlantedArm
    points = {("popularity", 16): {"logq_kept": arm(), "refined": arm()}}
    planted_studies.PlantedStudy(points, users=20, seeds=2).write(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"name": "small", "study": {}}))
    return tmp_path, summary_of(tmp_path)


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
        ("records", "summary.json has no command or records"),
        ("dirty", "run by code with changes after a commit \\(abc-dirty\\); run them again"),
        ("prediction", "the verdict on C2 is missing or has another prediction"),
        ("test", "the verdict on C2 is missing or has another prediction"),
        ("change", "the verdict on C2 is missing or has another prediction"),
        ("claim", "the verdict on C2 is missing or has another prediction"),
    ],
)
def test_take_over_refuses_an_unfinished_or_stale_study(script, finished, fault, message):
    folder, summary = finished
    if fault == "missing":
        summary["rows"][0]["planned"] += 1
    elif fault in ("command", "records"):
        del summary[fault]
    elif fault == "dirty":
        summary["records"]["code_commits"].append("abc-dirty")
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
        for text in (claim.prediction, claim.needs, claim.test, claim.change):
            assert text in PAGE


def test_claims_without_a_study_are_not_measured(script):
    for block in (script.verdicts, script.differences, script.drifts, script.rates, script.cost):
        assert block({}) == "Not measured yet."


def test_verdicts_name_the_grid_points_against_a_claim(script, studies):
    text = script.verdicts(studies)
    assert "| claim | small |" in text
    assert "**against**: of 2 grid points: supported at 1, against at 1, not decided at 0" in text
    assert "- C1, small, films, time, small, popularity, n = 16: NDCG@10 0." in text
    assert "popularity, n = 64: NDCG" not in text


def test_verdicts_group_the_undecided_grid_points_of_undecided_claims(script, studies):
    def findings(verdict, numbers, detail):
        return [{"verdict": verdict, "label": f"n = {n}", "detail": detail(n)} for n in numbers]

    planted = [
        *findings("not decided", range(5), lambda n: "0 common seeds finished; needs 5"),
        *findings("against", [8], lambda n: "against"),
        *findings("supported", [9], lambda n: "supported"),
        *findings("not decided", range(20, 40), lambda n: f"NLL +0.{n}"),
    ]
    (study,) = studies.values()
    judged = dict.fromkeys(("C1", "C2", "C3"), "against") | {"C2": "not decided"}
    claims = [
        {**one, "findings": [], "verdict": "supported"}
        | ({"findings": planted, "verdict": judged[one["name"]]} if one["name"] in judged else {})
        for one in study["summary"]["claims"]
    ]
    text = script.verdicts({"small": study | {"summary": {"claims": claims}}})
    lines = text.split("Grid points that are not decided")[1].splitlines()[2:]
    assert lines == [
        "- C2, small, n = 0; n = 1; n = 2 and 2 others: 0 common seeds finished; needs 5.",
        *(f"- C2, small, n = {n}: NLL +0.{n}." for n in range(20, 30)),
        "- C2, small: 10 other grid points.",
    ]


def test_differences_have_their_p_value_and_interval(script, studies):
    rows = [line for line in script.differences(studies).splitlines() if "n = 16 |" in line]
    assert len(rows) == 2
    _, point, ratio, mean, none, refined, bce, full, _ = map(str.strip, rows[1].split("|"))
    assert point == "films, time, small, popularity, n = 16"
    assert ratio == "2"
    assert bce == "–"
    assert " ± " in mean
    for cell, value in ((refined, 0.5), (none, 0.0), (full, 0.0)):
        difference, low, high = (float(one) for one in re.findall(r"[+-]\d\.\d+", cell))
        assert low <= difference <= high
        assert difference == pytest.approx(value, abs=0.01)
    assert ", p < .001 (" in refined


def test_drifts_stand_beside_the_excess_that_was_measured(script, studies):
    lines = script.drifts(studies).splitlines()
    (line,) = [line for line in lines if "n = 16 | `refined` |" in line]
    *start, excess, bias, _ = map(str.strip, line.split("|"))
    assert start[3:] == ["6", "8", "2", "0.400 ± 0.001"]
    value, error = map(float, excess.split(" ± "))
    assert value == pytest.approx(0.5, abs=0.01)
    assert 0 < error < 0.01
    assert bias == "0.200 ± 0.001"
    # bce has no drift.
    assert [line.split("`")[1] for line in lines[2:-2]] == [
        *("none", "logq_kept", "refined"),
        *("none", "logq_kept"),
    ]
    assert lines[-2:] == [
        "",
        "4 of 5 drifts are below twice their error. chi2 and the gradient bias are over 256 "
        "users, the drift is over 64 of them.",
    ]


def earlier(study):
    """The study as its first run was taken over: other tests, and drifts as 0 without errors."""
    summary = study["summary"]
    claims = [
        {name: value for name, value in one.items() if name != "change"}
        | {"test": claim.earlier_test or claim.test}
        for one, claim in zip(summary["claims"], CLAIMS, strict=True)
    ]
    new = ("drift_error", "gradient_bias_error", "chi2_users", "drift_users")
    drifts = [{k: v for k, v in one.items() if k not in new} for one in summary["drifts"]]
    return study | {"summary": summary | {"claims": claims, "drifts": drifts}}


def test_rates_at_an_edge_are_marked_and_counted(script, studies):
    (study,) = studies.values()

    def with_edges(of):
        rows = [one | {"rate_is_at_edge": of(one)} for one in study["summary"]["rows"]]
        return script.rates({"small": study | {"summary": study["summary"] | {"rows": rows}}})

    text = with_edges(lambda one: one["arm"] == "full_softmax")
    assert text.count("0.01*") == 2  # one rate, at both grid points
    assert "\n\n1 of 7 rates are at an edge. * the smallest or the largest one" in text
    assert with_edges(lambda one: None).endswith("one of their pilot was not recorded.")


def test_results_by_an_earlier_test_are_marked(script, studies):
    (study,) = studies.values()
    mark = "(by the test before its change)"
    assert mark not in script.verdicts(studies)
    rows = script.verdicts({"small": earlier(study)}).splitlines()
    assert [row[2:4] for row in rows if mark in row] == ["C5", "C6"]
    text = script.drifts({"small": earlier(study)})
    assert "| 0.400 |" in text
    assert text.endswith(
        "4 of 5 drifts were below twice their error, and are written as 0, without their error. "
        "The number of users of chi2 and drift was not recorded."
    )


def many(study, datasets):
    """The study with its rows and drifts repeated for so many datasets; later ones have 2 seeds."""
    summary = dict(study["summary"])
    for key in ("rows", "drifts"):
        summary[key] = [
            one
            | {"point": one["point"] | {"dataset": f"films {number}"}}
            | ({"seeds": 2} if number >= 15 else {})
            for number in range(datasets)
            for one in study["summary"][key]
        ]
    return {"small": study | {"summary": summary}}


def test_long_tables_are_shortened_by_a_stated_rule(script, studies):
    (study,) = studies.values()

    def size(text):
        return text.count("\n| films ")

    path = "`benchmarks/results/study/small.json` has all."
    assert size(script.rates(many(study, 20))) == 40
    assert path not in script.rates(many(study, 20))
    text = script.rates(many(study, 21))
    assert size(text) == 30
    assert f"\n\n30 of 42 rows: the grid points with the most seeds. {path}\n" in text
    text = script.differences(many(study, 21))
    assert size(text) == 2 * 30
    assert text.count("30 of 42 rows: the grid points with the most seeds.") == 2
    # Five rows for each dataset, three of them of the arms of C2.
    assert size(script.drifts(many(study, 8))) == 40
    text = script.drifts(many(study, 13))
    assert size(text) == 39
    kept = "the arms logq_masked, logq_kept, refined"
    assert f"\n\n39 of 65 rows: {kept}. {path}\n" in text
    text = script.drifts(many(study, 20))
    assert size(text) == 40
    seeds = "the grid points with the most seeds, of these the first"
    assert f"\n\n40 of 100 rows: {kept}, {seeds}. {path}\n" in text


def unfinished(page, readme):
    """Return what still treats the study as one without results."""
    text = " ".join(page.split())
    found = [words for words in UNMEASURED if words in text]
    return found + ([] if "](docs/study.md)" in readme else ["README.md has no link to the page"])


def test_page_of_a_study_with_results_states_them(script):
    if script.read_studies():
        assert unfinished(PAGE, (ROOT / "README.md").read_text()) == []


def test_words_of_a_page_without_results_are_found():
    assert unfinished("Evidence so\nfar. Not measured yet.", "[The study](docs/study.md)") == [
        "so far",
        "Not measured yet.",
    ]
    assert unfinished("Results.", "Nothing.") == ["README.md has no link to the page"]


def test_cost_counts_cells_of_the_whole_catalog_once(script, studies):
    lines = script.cost(studies).splitlines()
    # Six seeds of seven arms, and one of them failed.
    hours = (7 * sum(100 + seed for seed in range(6)) - 102) / 3600
    assert lines[2] == (
        f"| small | 41 | 1 | 0 | 0 | {hours:.2f} | 0.00 | 0.00 | {'1' * 12}, installed |  |"
    )
    assert lines[-1] == (
        "- small, films, time, small, popularity, n = 16, none: the loss is nan at step 3; lower "
        "the learning rate."
    )
    assert "0.01" in script.rates(studies)


def test_pilot_has_its_own_cells_and_hours(script, studies):
    (study,) = studies.values()
    pilot = {
        "finished": 12,
        "failed": 3,
        "training_cpu_hours": 1.5,
        "measurement_cpu_hours": 0.25,
    }
    phases = study["records"]["phases"] | {"pilot": pilot}
    text = script.cost({"small": study | {"records": study["records"] | {"phases": phases}}})
    assert "| small | 41 | 1 | 0 | 12, 3 failed |" in text
    assert "| 1.75 |" in text


def test_results_without_sums_of_their_records_state_so(script, studies):
    (study,) = studies.values()
    earlier = {name: value for name, value in study.items() if name != "records"}
    earlier |= {"commits": ["2" * 40 + "-dirty"], "versions": ["torch 2"], "cpu_hours": 2.26}
    text = script.cost({"small": earlier})
    assert "took 2.3 CPU hours, with the pilot and with cells of earlier settings" in text
    assert f"Commit of the study file: {'2' * 12}-dirty; torch 2." in text


def test_changes_after_the_commit_are_stated_on_the_page(script, finished):
    folder, summary = finished
    summary["records"]["code_commits"] = ["abc-dirty"]
    (folder / "summary.json").write_text(json.dumps(summary))
    script.take_over(folder, folder / "results", changes="Only a comment.")
    text = script.cost(script.read_studies(folder / "results"))
    assert "- small, changes after the commit: Only a comment." in text
