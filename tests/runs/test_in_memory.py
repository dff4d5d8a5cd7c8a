"""Models of a dataset in memory: trained, resumed, opened from their folder, and moved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import candid
from candid.audit.run_inputs import run_inputs
from candid.cli import run as run_verb
from candid.data import open_dataset
from candid.errors import ArtifactError, ConfigError
from candid.runs import DATA, compare_runs, load_runs
from candid.training import LAST, read_checkpoint

NUM_USERS, NUM_ITEMS, LENGTH = 40, 15, 6
RECIPE = {
    "threads": 1,
    "device": "cpu",
    "batches": {"max_length": 4, "batch_size": 8},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "sampler": {"type": "uniform", "num_candidates": 8},
    "loss": "sampled_softmax",
    "training": {"max_steps": 6, "schedule": "constant", "trackers": []},
    "evaluation": {"ks": [1, 3], "metric": "ndcg@3", "intervals": False},
}


def table(seed=0):
    """Users "u00", … with different films 100, 101, …"""
    rng = np.random.default_rng(seed)
    films = np.concatenate([rng.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    users = np.repeat(np.arange(NUM_USERS), LENGTH)
    return pl.DataFrame(
        {
            "user_id": [f"u{user:02}" for user in users],
            "item_id": films + 100,
            "t": np.arange(len(films)) + 1_700_000_000,
        }
    )


def dataset(seed=0):
    films = pl.DataFrame({"item_id": np.arange(NUM_ITEMS) + 100})
    films = films.with_columns(title="Film " + pl.col("item_id").cast(pl.String))
    return candid.prepare(table(seed), time="t", items=films)


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "films"
    return candid.train(dataset(), RECIPE, out=out, measure=False)


@pytest.fixture(scope="module", name="moved")
def _moved(run, tmp_path_factory):
    """A copy of the folder of the run, elsewhere."""
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(run.folder, folder)
    return folder


def test_run_stores_the_dataset_and_is_opened_from_its_folder(run, moved):
    assert run.dataset.path is None
    opened = candid.load_run(str(moved))
    assert opened.dataset.path == moved / DATA
    assert opened.dataset.fingerprint == run.dataset.fingerprint == dataset().fingerprint
    assert open_dataset(moved / DATA, verify=True).manifest["config"]["interactions"] == "the table"
    assert json.loads((moved / "run.json").read_text())["dataset"]["path"] == DATA
    assert_frame_equal(run.recommend(users=["u07"], k=4), opened.recommend(users=["u07"], k=4))


def test_recommendations_are_those_of_a_dataset_on_disk(run, tmp_path):
    on_disk = candid.prepare(table(), time="t", out=tmp_path / "data")
    other = candid.train(on_disk, RECIPE, out=tmp_path / "films", measure=False)
    columns = ["query", "rank", "item", "score"]
    users = ["u30", "u02"]
    assert_frame_equal(
        run.recommend(users=users).select(columns), other.recommend(users=users).select(columns)
    )
    assert not (tmp_path / "films" / DATA).exists()
    assert candid.load_run(tmp_path / "films").dataset.path == (tmp_path / "data").resolve()


def test_run_is_evaluated_audited_and_compared(run, moved):
    report = candid.load_run(moved).evaluate()
    assert report.summary() == run.evaluate().summary()
    assert len(run_inputs(run, 4)[0].query) == 4
    opened = load_runs([run.folder, moved])
    assert compare_runs(opened, config=run.evaluation).differences["ndcg@3"]


def test_verbs_take_the_folder_of_the_run(moved, capsys):
    for arguments in (["evaluate"], ["recommend", "--user", "u03", "-k", "2"], ["index"]):
        code = run_verb([arguments[0], str(moved), *arguments[1:], "--json"])
        assert code == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("is_lost", [False, True], ids=["stored", "not stored yet"])
def test_resume_is_exact(run, tmp_path, is_lost):
    out = tmp_path / "films"
    short = {**RECIPE, "training": {**RECIPE["training"], "max_steps": 3}}
    candid.train(dataset(), short, out=out, measure=False)
    if is_lost:
        shutil.rmtree(out / DATA)
    resumed = candid.train(dataset(), RECIPE, out=out, resume=True, measure=False)
    one, two = (read_checkpoint(r.folder / LAST).part("model") for r in (run, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert candid.load_run(out).dataset.path == out / DATA
    again = candid.train(out / DATA, RECIPE, out=out, resume=True, measure=False)
    assert again.manifest["dataset"]["path"] == DATA
    with pytest.raises(ArtifactError, match="was trained on another dataset"):
        candid.train(dataset(seed=1), RECIPE, out=out, resume=True)


def test_run_without_its_dataset_needs_it(moved, tmp_path):
    shutil.copytree(moved, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / DATA)
    with pytest.raises(ArtifactError, match=r"data, which does not exist: pass the dataset as dat"):
        candid.load_run(tmp_path / "run")
    assert candid.load_run(tmp_path / "run", dataset()).dataset.path is None


def test_dataset_that_was_not_prepared_is_stored_too(tmp_path):
    bare = replace(dataset(), manifest={})
    candid.train(bare, RECIPE, out=tmp_path / "run", measure=False)
    assert candid.load_run(tmp_path / "run").dataset.fingerprint == dataset().fingerprint


def test_failed_run_leaves_no_dataset_behind(tmp_path):
    broken = {**RECIPE, "evaluation": {"ks": [NUM_ITEMS + 1], "metric": f"ndcg@{NUM_ITEMS + 1}"}}
    with pytest.raises(ConfigError):
        candid.train(dataset(), broken, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_table_in_place_of_a_dataset_is_one_sentence(tmp_path):
    for data in (table(), table().to_pandas(), None, 3):
        message = "prepared dataset or its folder, got .*candid.prepare makes a dataset from a tabl"
        with pytest.raises(ConfigError, match=message):
            candid.train(data, RECIPE, out=tmp_path / "run")
        with pytest.raises(ConfigError, match=message):
            candid.fit_baseline(data, "popularity")


def test_saved_baseline_is_opened_from_its_folder(tmp_path):
    baseline = candid.fit_baseline(dataset(), "item_knn", tuning=False)
    baseline.save(tmp_path / "knn")
    (tmp_path / "knn").rename(tmp_path / "moved")
    opened = candid.load(tmp_path / "moved")
    assert opened.dataset.path == tmp_path / "moved" / DATA
    assert_frame_equal(opened.recommend(users=["u05"]), baseline.recommend(users=["u05"]))


def test_search_stores_the_dataset_once(tmp_path):
    pytest.importorskip("optuna", reason="needs the extra tune")
    from candid.tuning import search

    search(dataset(), out=tmp_path / "tuned", minutes=0.2, trials=1)
    assert open_dataset(tmp_path / "tuned" / DATA).fingerprint == dataset().fingerprint
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("user_offsets.npy")] == [
        "tuned/data/user_offsets.npy"
    ]


def test_refit_stores_the_dataset_of_both_models(tmp_path):
    recipe = {**RECIPE, "training": {"epochs": 2, "trackers": []}}
    run = candid.train(dataset(), recipe, out=tmp_path / "run", refit=True, measure=False)
    for folder in (run.folder, run.folder / "before-refit"):
        assert candid.load_run(folder).dataset.fingerprint == dataset().fingerprint
        assert candid.load_run(folder).dataset.path == folder / DATA
    first, second = run.folder / "before-refit" / DATA, run.folder / DATA
    names = sorted(file.name for file in first.iterdir())
    assert sorted(file.name for file in second.iterdir()) == names
    for name in names:
        assert (first / name).samefile(second / name), f"{name} is on the disk twice"


def test_recipe_with_a_section_of_data_fits_a_table_in_memory(tmp_path):
    data = {"interactions": "ratings.csv", "time": "t", "items": {"path": "films.csv"}}
    run = candid.train(dataset(), {**RECIPE, "data": data}, out=tmp_path / "run", measure=False)
    assert run.config.data.interactions == "ratings.csv"
    other = {**RECIPE, "data": {**data, "k_core": 2}}
    with pytest.raises(ArtifactError, match=r"dataset in memory was prepared with data\.k_core"):
        candid.train(dataset(), other, out=tmp_path / "other")
