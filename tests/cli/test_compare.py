"""The verb ``candid compare``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import candid as package
from candid.cli import run
from candid.evaluation import holm
from candid.runs import load_run


@pytest.fixture(scope="module")
def others(toy, tmp_path_factory):
    """Two more runs on the dataset of the toy: another seed, and another loss."""
    root = tmp_path_factory.mktemp("runs")
    for name, key in (("seeded", "seed=7"), ("bce", "loss.type=bce")):
        arguments = ["train", str(toy.recipe), "--data", str(toy.data), "--out", str(root / name)]
        assert run([*arguments, "--set", key, "--quiet"]) == 0
    return root


@pytest.fixture(scope="module")
def elsewhere(toy, tmp_path_factory):
    """A dataset of the same ids with another split, and a run on it."""
    root = tmp_path_factory.mktemp("elsewhere")
    split = ["kind=temporal", "validation=0.5", "test=0.75"]
    split = [part for one in split for part in ("--set", f"data.split.{one}")]
    assert run(["prepare", str(toy.recipe), *split, "--out", str(root / "d"), "--quiet"]) == 0
    train = ["train", str(toy.recipe), "--data", str(root / "d"), "--out", str(root / "r")]
    assert run([*train, *split, "--quiet"]) == 0
    return root


def test_compare_reports_differences_to_the_first_run(candid, toy, others, tmp_path):
    page = tmp_path / "new" / "page.html"
    runs = [toy.run, others / "seeded", others / "bce"]
    answer = candid("compare", *runs, "--out", page, "--json")
    assert (answer.code, answer.err) == (0, "")
    document = answer.document
    names = [str(path) for path in runs]
    assert document["reference"] == names[0]
    assert (list(document["reports"]), document["split"]) == (names, "test")
    assert document["metrics"] == ["ndcg@10", "recall@10", "nll"]
    assert document["page"] == str(page)
    reports = [load_run(path).evaluate("test") for path in runs]
    for metric in document["metrics"]:
        expected = [package.compare(report, reports[0], metric) for report in reports[1:]]
        adjusted = holm([one.p_value for one in expected])
        for name, one, p in zip(names[1:], expected, adjusted, strict=True):
            difference = document["reports"][name]["differences"][metric]
            assert difference["difference"] == pytest.approx(one.difference, abs=1e-9)
            assert difference["p_value"] == pytest.approx(one.p_value)
            assert difference["adjusted_p_value"] == pytest.approx(p)
            assert difference["users"] == 40
    assert document["settings"]["seed"] == {
        names[0]: "0", names[1]: "7", names[2]: "0"
    }  # fmt: skip
    assert document["settings"]["loss.type"][names[2]] == '"bce"'
    assert document["notes"] == [
        f"the loss of {names[2]} does not estimate probabilities, so ignore its nll"
    ]
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 1 + len(document["slices"])
    assert "Holm" in text
    assert "seed" in text


def test_compare_prints_tables_and_the_result(candid, toy, others):
    answer = candid("compare", toy.run, others / "seeded", "--metric", "recall@1")
    assert answer.code == 0, answer.err
    assert "in recall@1: " in answer.out
    assert "settings that differ" in answer.out
    assert "seed" in answer.out
    assert "history length, recall@1" in answer.out
    assert "Holm" not in answer.out
    assert "written to" not in answer.out


def test_compare_measures_with_the_settings_of_the_first_run(candid, toy, others):
    settings = ["--set", "evaluation.ks=[2]", "--metric", "mrr@2", "--split", "validation"]
    answer = candid("compare", toy.run, others / "seeded", *settings, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["metrics"] == ["mrr@2", "recall@2", "nll"]
    assert answer.document["split"] == "validation"


def test_runs_on_different_datasets_are_refused_unless_data_is_named(
    candid, toy, elsewhere, tmp_path
):
    answer = candid("compare", toy.run, elsewhere / "r")
    assert (answer.code, answer.out) == (4, "")
    assert answer.err.startswith(f"error: {toy.run} was trained on {toy.data.resolve()}")
    assert f" and {elsewhere / 'r'} on {(elsewhere / 'd').resolve()} " in answer.err
    assert "--data" in answer.err
    assert len(answer.err.splitlines()) == 1

    answer = candid("compare", toy.run, elsewhere / "r", "--data", toy.data, "--json")
    assert answer.code == 0, answer.err
    (note,) = answer.document["notes"]
    assert note.startswith(f"{elsewhere / 'r'} was trained on")
    assert "may contain targets" in note
    users = answer.document["reports"][str(elsewhere / "r")]["counts"]["users"]
    assert users == 40

    rows = toy.log.read_text().replace("u3,", "someone,")
    (tmp_path / "log.csv").write_text(rows)
    flags = ["--interactions", tmp_path / "log.csv", "--user", "who", "--item", "what"]
    assert candid("prepare", *flags, "--time", "at", "--out", tmp_path / "d").code == 0
    # A user is renamed: the runs are mapped by source id.
    answer = candid("compare", toy.run, elsewhere / "r", "--data", tmp_path / "d", "--json")
    assert answer.code == 0, answer.err
    assert len(answer.document["notes"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{run}"], 2, "name at least two runs to compare; candid evaluate measures a single one"),
        (["{run}", "{run}/../run"], 2, "is named twice; name different runs"),
        (["{run}", "{data}"], 4, "is not a run: it has no run.json"),
        (["{run}", "{seeded}", "--metric", "ndcg@7"], 2, "'ndcg@7' is not reported; known: "),
        (["{run}", "{seeded}", "--set", "loss.type=bce"], 2, "only keys of [evaluation]"),
        (["{run}", "{seeded}", "--data", "{run}"], 4, "so it is not a prepared dataset"),
        (["{run}", "{seeded}", "--out", "{log}/page.html"], 4, "cannot write"),
        (["{run}", "{seeded}", "--split", "train"], 2, "train"),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_usage_of_compare_is_one_sentence(candid, toy, others, arguments, code, message):
    places = {"run": toy.run, "data": toy.data, "log": toy.log, "seeded": others / "seeded"}
    answer = candid("compare", *(text.format(**places) for text in arguments))
    assert (answer.code, answer.out) == (code, "")
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1


def test_compare_runs_as_a_command(toy, others, tmp_path):
    command = [sys.executable, "-m", "candid", "compare", str(toy.run), str(others / "seeded")]
    done = subprocess.run(
        [*command, "--json", "--out", str(tmp_path / "page.html")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["reference"] == str(toy.run)
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    done = subprocess.run(command[:-1], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: name at least two runs")
