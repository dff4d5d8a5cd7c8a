import json

import pytest

QUICK = ["--users", "10", "--repeats", "16", "--rows", "8"]


def test_a_run_is_audited_before_and_after_training(candid, toy, tmp_path):
    out = tmp_path / "audit"
    answer = candid("audit", toy.run, *QUICK, "--out", out, "--budget-ms", "1000", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert list(answer.document["subjects"]) == ["at initialisation", "trained"]
    assert answer.document["recommendation"]["sentence"].startswith("for 1000 ms a step choose")
    # 16 is the only size of the default that fits into the catalog of 30.
    assert {entry["n"] for entry in answer.document["entries"]} == {16}
    yours = [entry for entry in answer.document["entries"] if entry["is_yours"]]
    assert {entry["correction"] for entry in yours} == {"none", "logq", "refined"}
    stored = json.loads((out / "audit.json").read_text())
    assert stored["entries"] == answer.document["entries"]
    assert "<svg" in (out / "audit.html").read_text()


def test_a_dataset_alone_is_audited_at_initialisation(candid, toy, tmp_path):
    answer = candid("audit", "--data", toy.data, "--n", "4", *QUICK, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "at initialisation: relative error of the gradient, 20 of " in answer.out
    assert "without a budget the full softmax is the choice" in answer.out
    assert str(tmp_path / "audit.html") in answer.out
    assert "1/" in answer.err
    assert "full softmax" in answer.err


def test_what_is_left_out_is_said(candid, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("candid.audit.estimators.KERNELS_UP_TO", 29)
    asked = ["audit", "--data", toy.data, "--n", "4", "--seconds", "1", *QUICK]
    answer = candid(*asked, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "not measured: random Fourier and quadratic samplers" in answer.out
    (note,) = json.loads((tmp_path / "audit.json").read_text())["notes"]
    assert note in answer.out
    assert note[1:] in (tmp_path / "audit.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--n", "4,x"], 2, "--n '4,x' is not a list of numbers"),
        (["--n", "31"], 2, "distinct items cannot be larger than the catalog of 30"),
        (["--n", "1"], 2, "at least 2 candidates"),
        (["--budget-ms", "0"], 2, "--budget-ms 0 must be a positive number"),
        (["--accuracy", "0"], 2, "--accuracy 0 must be positive"),
        (["--seconds", "0"], 2, "--seconds 0 must be positive"),
        (["--world"], 2, "--world is the synthetic world"),
        (["--users", "0"], 2, "--users"),
    ],
)
def test_bad_usage_is_one_sentence(candid, toy, tmp_path, arguments, code, sentence):
    answer = candid("audit", toy.run, *arguments, "--out", tmp_path / "x")
    assert answer.code == code
    assert sentence in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_no_run_is_refused(candid, tmp_path):
    answer = candid("audit", tmp_path)
    assert answer.code == 4
    assert "is not a run" in answer.err
