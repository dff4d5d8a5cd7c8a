import importlib
import json

import pytest

from candid.audit import standard_cases
from candid.cli.console import Console

QUICK = ["--users", "10", "--repeats", "16", "--rows", "8", "--drift-repeats", "16"]


def test_audit_of_a_run_is_before_and_after_training(candid, toy, tmp_path):
    out = tmp_path / "audit"
    answer = candid("audit", toy.run, *QUICK, "--out", out, "--budget-ms", "1000", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert list(answer.document["inputs"]) == ["at initialisation", "trained"]
    assert answer.document["recommendation"]["sentence"].startswith("for 1000 ms per step, choose")
    rows = answer.document["estimators"]
    assert "entries" not in answer.document
    # 16 is the only default size below the 30 items; batches have a size of their own.
    assert {row["n"] for row in rows if row["sampler"] != "in_batch"} == {16}
    assert len({row["n"] for row in rows if row["sampler"] == "in_batch"}) == 1
    recipe = [row for row in rows if row["is_recipe"]]
    assert {(row["correction"], row["accidental_hits"], row["jackknife"]) for row in recipe} == {
        (None, "keep", False),
        ("none", "mask", False),
        ("logq", "keep", False),
        ("logq", "mask", False),
        ("refined", "mask", False),
        ("refined", "mask", True),
        ("published_code", "mask", False),
    }
    learnt = [(row["loss"], row["cap"]) for row in recipe if row["correction"] is None]
    assert learnt == [("learnt_partition", 3.0)]
    assert all(row["cap"] is None for row in recipe if row["loss"] == "sampled_softmax")
    assert_rows_are_complete(rows)
    assert any(row["distinct"] for row in rows)
    stored = json.loads((out / "audit.json").read_text())
    assert stored["estimators"] == rows
    assert "<svg" in (out / "audit.html").read_text()


def assert_rows_are_complete(rows):
    for row in rows:
        assert isinstance(row["sampler"], str)
        assert isinstance(row["settings"], dict)
        assert isinstance(row["distinct"], bool)
        assert row["drift_se"] > 0
        assert isinstance(row["drift"], float)
        for name in ("chi2", "kl"):
            if row["sampler"].startswith("exact"):
                assert row[name] is None
            elif row[name] is None:
                # No batch can hold a synthetic item without interactions.
                assert row["sampler"] == "in_batch"
            else:
                assert row[name] > 0


def cases_of_two_samplers(*arguments, **settings):
    """Return the cases that the drifts below come from; the other samplers take a minute."""
    cases = standard_cases(*arguments, **settings)
    return [case for case in cases if case.name in ("popularity", "in-batch")]


@pytest.mark.slow
def test_audit_of_synthetic_data_finds_the_drift_of_each_correction(candid, tmp_path, monkeypatch):
    monkeypatch.setattr("candid.audit.standard_cases", cases_of_two_samplers)
    arguments = ["--n", "16", "--users", "16", "--repeats", "16", "--rows", "8"]
    answer = candid("audit", *arguments, "--drift-users", "24", "--out", tmp_path, "--json")
    assert (answer.code, answer.err) == (0, "")
    rows = answer.document["estimators"]
    assert_rows_are_complete(rows)
    assert list(answer.document["inputs"]) == ["at initialisation", "true model"]
    by_key = {
        (row["correction"], row["accidental_hits"]): row
        for row in rows
        if row["name"] == "popularity" and not row["jackknife"]
    }
    kept = by_key["logq", "keep"]
    assert abs(kept["drift"]) < 4 * kept["drift_se"]
    for key in (("refined", "mask"), ("none", "mask"), ("published_code", "mask")):
        assert by_key[key]["drift"] > 4 * by_key[key]["drift_se"]
    names = [(row["correction"], row["accidental_hits"]) for row in rows if row in by_key.values()]
    assert names.index(("logq", "keep")) < names.index(("refined", "mask"))


def test_audit_of_a_dataset_is_at_initialisation(candid, toy, tmp_path):
    answer = candid("audit", "--data", toy.data, "--n", "4", *QUICK, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "at initialisation: 20 of " in answer.out
    assert "least expected excess first" in answer.out
    assert "without a budget, choose the full softmax" in answer.out
    assert str(tmp_path / "audit.html") in answer.out


def test_audit_progress_states_the_remaining_measurements(capsys, monkeypatch):
    # ``candid.cli.audit`` is the verb; the module has the same name.
    module = importlib.import_module("candid.cli.audit")
    clock = iter([0.0, 1.0, 2.5, 3.0, 5.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with module._progress(Console(json=False, quiet=False)) as progress:
        for done in range(4):
            progress(done, 12, f"uniform, n = {done}")
    assert capsys.readouterr().err.splitlines() == [
        "1/12 measurements done, 11 remaining: uniform, n = 1",
        "3/12 measurements done, 9 remaining: uniform, n = 3",
    ]


@pytest.mark.slow
def test_audit_of_a_large_catalog_names_samplers_not_measured(candid, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("candid.audit.cases.SAMPLES_PER_ROW_UP_TO", 29)
    arguments = ["audit", "--data", toy.data, "--n", "4", "--seconds", "1", *QUICK]
    answer = candid(*arguments, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "not measured: the random Fourier and quadratic samplers" in answer.out
    page = (tmp_path / "audit.html").read_text()
    notes = json.loads((tmp_path / "audit.json").read_text())["notes"]
    assert [note.split(" ")[0] for note in notes] == ["not", "candidates"]
    for note in notes:
        assert note in answer.out
        assert note[1:] in page


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--n", "4,x"], 2, "--n '4,x' must be numbers separated by commas"),
        (["--n", "31"], 2, "distinct items cannot be larger than the catalog of 30"),
        (["--n", "1"], 2, "at least 2 candidates"),
        (["--budget-ms", "0"], 2, "--budget-ms 0 must be a positive number"),
        (["--accuracy", "0"], 2, "--accuracy 0 must be positive"),
        (["--noise", "-1"], 2, "--noise -1 must be a number of nats from 0"),
        (["--drift-repeats", "8"], 2, "--drift-repeats"),
        (["--drift-users", "0"], 2, "--drift-users"),
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
