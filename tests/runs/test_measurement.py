"""The measurement after a training: printed, stored, or left out."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

import candid
from candid.batches import offsets_of
from candid.data import PreparedDataset, Role
from candid.errors import Interrupted
from candid.runs import measurement
from candid.runs.measurement import measure_on_test

NUM_USERS, NUM_ITEMS, LENGTH = 30, 12, 6
RECIPE = {
    "threads": 1,
    "device": "cpu",
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "loss": "full_softmax",
    "training": {"epochs": 1, "trackers": []},
    "evaluation": {"ks": [1, 5], "metric": "ndcg@5"},
}


def films():
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    roles = np.tile([Role.TRAIN] * 4 + [Role.VALIDATION, Role.TEST], NUM_USERS)
    return PreparedDataset(
        item_ids=items.astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=roles.astype(np.uint8),
        users=pl.DataFrame({"source_id": np.arange(NUM_USERS)}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS) + 100}),
        timestamps=np.arange(len(items)) * 1_000_000,
        manifest={"fingerprint": "films", "config": {"order": None}},
    )


def test_training_prints_and_stores_the_run_beside_baselines(tmp_path, capsys):
    run = candid.train(films(), RECIPE, out=tmp_path / "run")
    printed = capsys.readouterr().out
    assert "test: the model beside baselines, 30 users" in printed
    stored = json.loads((tmp_path / "run" / "baselines-test.json").read_text())
    assert stored["sentence"] in printed
    for name in ("popularity", "item_knn", "markov", "co_visits", "session_knn"):
        assert name in printed
    report = json.loads((tmp_path / "run" / "evaluation-test.json").read_text())
    expected = run.evaluate().metrics["ndcg@5"].value
    assert report["metrics"]["ndcg@5"]["value"] == pytest.approx(expected, abs=1e-12)
    best = stored["results"]["baselines"][0]["report"]["metrics"]["ndcg@5"]["value"]
    difference = stored["comparisons"][0]["difference"]
    assert difference == pytest.approx(expected - best, abs=1e-12)


def test_quiet_stores_without_printing_and_measure_leaves_both_out(tmp_path, capsys):
    candid.train(films(), RECIPE, out=tmp_path / "quiet", quiet=True)
    assert (tmp_path / "quiet" / "baselines-test.json").exists()
    candid.train(films(), RECIPE, out=tmp_path / "none", measure=False)
    without = dataclasses.replace(films(), roles=np.zeros(NUM_USERS * LENGTH, dtype=np.uint8))
    without.roles[LENGTH - 1 :: LENGTH] = Role.VALIDATION
    candid.train(without, RECIPE, out=tmp_path / "no-test")
    assert capsys.readouterr().out == ""
    for name in ("none", "no-test"):
        assert not list((tmp_path / name).glob("*-test.json"))


def test_a_run_that_cannot_be_measured_is_returned(tmp_path, capsys):
    seen = films()
    first, last = np.arange(0, NUM_USERS * LENGTH, LENGTH), np.arange(5, NUM_USERS * LENGTH, LENGTH)
    seen.item_ids[last] = seen.item_ids[first]  # every test target is a repeat, which is hidden
    run = candid.train(seen, RECIPE, out=tmp_path / "run")
    assert len(run.recommend([3], k=4)) == 4
    assert "not measured on the test split: " in capsys.readouterr().out


def test_baselines_of_many_interactions_are_left_out_with_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("candid.runs.baselines.CHEAP_ROWS", NUM_USERS * LENGTH - 1)
    candid.train(films(), RECIPE, out=tmp_path / "run")
    printed = capsys.readouterr().out
    expected = (
        f"not measured beside baselines: baselines hold all {NUM_USERS * LENGTH} interactions"
    )
    assert expected in printed
    assert f"candid evaluate {tmp_path / 'run'} --baselines" in printed
    assert (tmp_path / "run" / "evaluation-test.json").exists()
    assert not (tmp_path / "run" / "baselines-test.json").exists()


def test_ctrl_c_while_measuring_names_the_next_command(tmp_path, monkeypatch):
    run = candid.train(films(), RECIPE, out=tmp_path / "run", measure=False)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(measurement, "beside_cheap_baselines", stop)
    with pytest.raises(Interrupted, match="is trained, measure it with: candid evaluate"):
        measure_on_test(run)
    assert measure_on_test(run, baselines=False).beside is None


def test_report_with_other_settings_does_not_replace_that_of_the_run(tmp_path):
    run = candid.train(films(), RECIPE, out=tmp_path / "run", quiet=True)
    file = tmp_path / "run" / "evaluation-test.json"
    before = file.read_bytes()
    config = run.evaluation.model_copy(update={"ks": (1, 2)})
    path = measurement.evaluate_and_save(run, run.folder, "test", config)[1]
    assert path.name.startswith("evaluation-test-set-")
    assert json.loads(path.read_text())["settings"]["ks"] == [1, 2]
    assert file.read_bytes() == before
    same = run.evaluation.model_copy()
    assert measurement.evaluate_and_save(run, run.folder, "test", same)[1] == file
