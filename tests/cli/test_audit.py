import json

import pytest

QUICK = ["--users", "10", "--repeats", "16", "--rows", "8"]


def test_audit_of_a_run_is_before_and_after_training(candid, toy, tmp_path):
    out = tmp_path / "audit"
    answer = candid("audit", toy.run, *QUICK, "--out", out, "--budget-ms", "1000", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert list(answer.document["inputs"]) == ["at initialisation", "trained"]
    assert answer.document["recommendation"]["sentence"].startswith("for 1000 ms per step, choose")
    # 16 is the only default size below the 30 items.
    assert {entry["num_candidates"] for entry in answer.document["entries"]} == {16}
    recipe = [entry for entry in answer.document["entries"] if entry["is_recipe"]]
    assert {entry["correction"] for entry in recipe} == {
        "none",
        "logq",
        "refined",
        "published_code",
    }
    stored = json.loads((out / "audit.json").read_text())
    assert stored["entries"] == answer.document["entries"]
    assert "<svg" in (out / "audit.html").read_text()


def test_audit_of_a_dataset_is_at_initialisation(candid, toy, tmp_path):
    answer = candid("audit", "--data", toy.data, "--n", "4", *QUICK, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "at initialisation: relative error of the gradient, 20 of " in answer.out
    assert "without a budget, choose the full softmax" in answer.out
    assert str(tmp_path / "audit.html") in answer.out
    assert "1/" in answer.err
    assert "full softmax" in answer.err


@pytest.mark.slow
def test_audit_of_a_large_catalog_names_samplers_not_measured(candid, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("candid.audit.cases.SAMPLES_PER_ROW_UP_TO", 29)
    arguments = ["audit", "--data", toy.data, "--n", "4", "--seconds", "1", *QUICK]
    answer = candid(*arguments, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "not measured: the random Fourier and quadratic samplers" in answer.out
    (note,) = json.loads((tmp_path / "audit.json").read_text())["notes"]
    assert note in answer.out
    assert note[1:] in (tmp_path / "audit.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--n", "4,x"], 2, "--n '4,x' must be numbers separated by commas"),
        (["--n", "31"], 2, "distinct items cannot be larger than the catalog of 30"),
        (["--n", "1"], 2, "at least 2 candidates"),
        (["--budget-ms", "0"], 2, "--budget-ms 0 must be a positive number"),
        (["--accuracy", "0"], 2, "--accuracy 0 must be positive"),
        (["--seconds", "0"], 2, "--seconds 0 must be positive"),
        (["--synthetic"], 2, "--synthetic cannot be combined with a run or --data"),
        (["--users", "0"], 2, "--users"),
    ],
)
def test_audit_with_bad_usage_is_refused_in_one_sentence(
    candid, toy, tmp_path, arguments, code, sentence
):
    answer = candid("audit", toy.run, *arguments, "--out", tmp_path / "x")
    assert answer.code == code
    assert sentence in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_audit_of_a_folder_without_a_run_is_refused(candid, tmp_path):
    answer = candid("audit", tmp_path)
    assert answer.code == 4
    assert "is not a run" in answer.err
