"""Refits: the length that validation chose, on all interactions, exact to resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.batches import Loader, target_counts
from candid.config import parse_config
from candid.data import DataConfig, PreparedDataset, Role, SplitConfig, prepare_folder
from candid.errors import ArtifactError, ConfigError, Interrupted
from candid.runs import build_model, build_objective, load_run, load_runs, train_run
from candid.runs.comparison import compare_runs
from candid.runs.refit import Refit, check_can_refit
from candid.training import BEST, LAST, Trainer, TrainState, read_checkpoint

NUM_ITEMS = 15


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Every user walks through the catalog in order, with a random start and length."""
    rng = np.random.default_rng(0)
    rows = [
        (user, int(start + step) % NUM_ITEMS, 1_700_000_000 + 1000 * step)
        for user, (start, length) in enumerate(rng.integers([0, 5], [NUM_ITEMS, 14], (40, 2)))
        for step in range(length)
    ]
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row").write_parquet(path)
    return path


@pytest.fixture(scope="module")
def data(log, tmp_path_factory):
    config = DataConfig(interactions=str(log), time="t")
    return prepare_folder(config, tmp_path_factory.mktemp("data") / "d").dataset


@pytest.fixture(scope="module")
def everything(log, tmp_path_factory):
    """The same interactions without a split: all train."""
    config = DataConfig(interactions=str(log), time="t", split=SplitConfig(kind="none"))
    return prepare_folder(config, tmp_path_factory.mktemp("data") / "d").dataset


def table(unit="sequence", **training):
    tower = {"type": "causal_transformer", "dim": 8, "num_blocks": 1, "dropout": 0.3}
    return {
        "name": "walk",
        "device": "cpu",
        "batches": {"batch_size": 8, "max_length": 4, "unit": unit},
        "model": {
            "query_tower": tower if unit == "sequence" else {"type": "user_embedding", "dim": 8},
            "item_tower": {"type": "item_embedding", "dim": 8},
        },
        "sampler": {"type": "mixture", "components": ["popularity", "in_batch"]},
        "loss": {"type": "sampled_softmax"},
        "training": {
            "epochs": 4,
            "lr": 0.03,
            "schedule": "cosine",
            "warmup_steps": 5,
            "patience": 2,
            "log_every": 1,
        }
        | training,
        "evaluation": {"ks": [1, 5], "metric": "ndcg@5"},
    }


def recipe(**settings):
    return parse_config(table(**settings), "test")


def weights(folder):
    return read_checkpoint(folder / LAST).part("model")


def check_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def lines(folder, name):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in read if name in line]


def train_by_hand(config, dataset, steps, folder):
    """Take ``steps`` steps on ``dataset`` with the schedule of ``config.training``."""
    torch.manual_seed(config.seed)
    model = build_model(config, dataset)
    counts = target_counts(dataset, config.batches)
    loss, sampler = build_objective(config, dataset, counts)
    folder.mkdir()
    trainer = Trainer(
        model=model,
        loader=Loader(dataset, config.batches, seed=config.seed),
        loss=loss,
        sampler=sampler,
        config=config.training,
        folder=folder,
        seed=config.seed,
    )
    trainer.run()
    assert trainer.state.step == steps
    return weights(folder)


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_refit_equals_a_training_on_all_interactions_of_the_chosen_steps(
    data, everything, tmp_path, unit
):
    config = recipe(unit=unit, schedule="constant")
    out = tmp_path / "run"
    result = train_run(config, data, out, refit=True)
    alone = train_run(config, data, tmp_path / "alone")
    check_equal(weights(out / "before-refit"), weights(tmp_path / "alone"))
    steps = alone.state.best_epoch * Loader(everything, config.batches, seed=0).num_batches
    hand = recipe(unit=unit, schedule="constant", max_steps=steps)
    check_equal(weights(out), train_by_hand(hand, everything, steps, tmp_path / "hand"))
    record = result.manifest["refit"]
    assert record["steps"] == steps == result.state.step
    assert record["best"] == alone.state.best
    assert record["best_epoch"] == alone.state.best_epoch
    assert record["metric"] == "ndcg@5"
    assert record["before"] == "before-refit"
    assert json.loads((out / "run.json").read_text())["refit"] == record
    assert not (out / BEST).exists()


def test_refit_stretches_the_schedule_by_the_steps_of_an_epoch(
    data, everything, tmp_path, monkeypatch
):
    update = TrainState.update_best

    def first_is_best(state, metrics):
        return update(state, metrics | {"ndcg@5": -state.epoch})

    monkeypatch.setattr(TrainState, "update_best", first_is_best)
    config = recipe(epochs=4, validate_every=2)
    result = train_run(config, data, tmp_path / "run", refit=True)
    before = Loader(data, config.batches, seed=0).num_batches
    after = Loader(everything, config.batches, seed=0).num_batches
    assert after > before
    record = result.manifest["refit"]
    assert (record["steps_per_epoch_before"], record["steps_per_epoch"]) == (before, after)
    assert record["schedule_steps"] == 4 * after
    rates = lines(tmp_path / "run", "lr")
    assert record["best_epoch"] == 2
    assert len(rates) == 2 * after
    step = np.arange(len(rates))
    progress = (step - 5) / (4 * after - 5)
    expected = np.where(step < 5, 0.03 * (step + 1) / 5, 0.015 * (1 + np.cos(np.pi * progress)))
    assert np.allclose(rates, expected, rtol=1e-12, atol=0)


def test_refit_of_a_stop_within_an_epoch_rounds_to_the_nearest_step(data, everything, tmp_path):
    config = recipe(max_steps=7)
    result = train_run(config, data, tmp_path / "run", refit=True)
    before = Loader(data, config.batches, seed=0).num_batches
    after = Loader(everything, config.batches, seed=0).num_batches
    best_step = lines(tmp_path / "run" / "before-refit", "validation/ndcg@5")
    assert len(best_step) == 7 // before + 1
    record = result.manifest["refit"]
    assert record["best_step"] in {7, *range(before, 8, before)}
    assert result.state.step == round(record["best_step"] * after / before)


def test_length_of_a_refit_follows_the_steps_of_an_epoch():
    chosen = Refit("ndcg@10", 0.1, 3, 30, 100, 10)
    assert (chosen.with_epochs_of(12).steps, chosen.with_epochs_of(12).schedule_steps) == (36, 120)
    between = Refit("ndcg@10", 0.1, 1, 7, 7, 3)
    assert between.with_epochs_of(4).steps == round(7 * 4 / 3)
    shortest = Refit("ndcg@10", 0.1, 0, 1, 1, 100).with_epochs_of(10)
    assert shortest.steps == 1
    assert "interactions: 1 step, 0.01 epochs as" in shortest.sentence()
    one = Refit("ndcg@10", 0.1, 1, 10, 10, 10).with_epochs_of(12)
    assert "interactions: 12 steps, 1 epoch as" in one.sentence()


@pytest.mark.parametrize("optimizer", ["keep", "reset"])
def test_both_passes_of_a_refit_start_from_an_earlier_run(data, everything, tmp_path, optimizer):
    train_run(recipe(epochs=2), data, tmp_path / "earlier")
    config = recipe(epochs=2, schedule="constant", init_optimizer=optimizer)
    out, init = tmp_path / "run", tmp_path / "earlier"
    result = train_run(config, data, out, init=init, refit=True)
    record = result.manifest["refit"]
    after = Loader(everything, config.batches, seed=0).num_batches
    assert record["best_epoch"] in (1, 2)
    assert record["steps"] == record["best_epoch"] * after
    assert result.state.step - result.state.start_step == record["steps"]
    length = {"max_steps": record["steps"], "init_optimizer": optimizer}
    alone = recipe(epochs=2, schedule="constant", **length)
    train_run(alone, everything, tmp_path / "alone", init=init)
    check_equal(weights(out), weights(tmp_path / "alone"))


def test_refitted_run_is_loaded_with_all_histories_and_not_measured(data, tmp_path):
    out = tmp_path / "run"
    refitted = candid.train(data, table(epochs=2), out=out, refit=True, quiet=True)
    assert refitted.folder == out
    check_equal(refitted.model.state_dict(), candid.load_run(out).model.state_dict())
    refitted = candid.load_run(out)
    run = candid.load_run(out / "before-refit")
    assert set(refitted.dataset.roles) == {Role.TRAIN}
    assert np.array_equal(refitted.item_counts, target_counts(refitted.dataset, run.config.batches))
    assert refitted.item_counts.sum() > run.item_counts.sum()
    assert refitted.recommend(users=[3, 4], k=3).height == 6
    assert (out / "before-refit" / "evaluation-test.json").exists()
    assert not (out / "evaluation-test.json").exists()
    for split in ("test", "validation"):
        with pytest.raises(ConfigError, match=r"refitted on all interactions.*before-refit"):
            refitted.evaluate(split)
    with pytest.raises(ConfigError, match="refitted on all interactions"):
        compare_runs(load_runs([out / "before-refit", out]))
    assert load_run(out / "before-refit").evaluate("test").counts["users"] == 40


@pytest.mark.parametrize("stopped", ["first", "second"])
def test_refit_resumes_exactly_from_a_stop_in_either_pass(data, tmp_path, monkeypatch, stopped):
    config = recipe()
    whole = train_run(config, data, tmp_path / "whole", refit=True)
    out, step, passes = tmp_path / "cut", Trainer.step, []

    def stopping(trainer, *arguments, **options):
        is_first = trainer.folder.name == "before-refit"
        passes.append(is_first)
        if passes.count(stopped == "first") == 9 and is_first == (stopped == "first"):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *arguments, **options)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Interrupted, match="--resume to continue"):
        train_run(config, data, out, refit=True)
    assert (out / "run.json").exists() == (stopped == "second")
    with pytest.raises(ConfigError, match="already holds a run: continue it with --resume"):
        train_run(config, data, out, refit=True)
    with pytest.raises(ConfigError, match="was started with --refit: resume with"):
        train_run(config, data, out, resume=True)
    resumed = train_run(config, data, out, resume=True, refit=True)
    check_equal(weights(tmp_path / "whole"), weights(out))
    assert resumed.manifest["refit"] == whole.manifest["refit"]
    # No step is taken twice.
    first = json.loads((tmp_path / "whole" / "before-refit" / "run.json").read_text())
    assert passes.count(True) == first["result"]["steps"]
    assert passes.count(False) == whole.state.step
    for folder in (out, out / "before-refit"):
        assert lines(folder, "loss") == lines(tmp_path / "whole" / folder.relative_to(out), "loss")


def test_refit_that_stopped_between_its_files_starts_again(data, tmp_path):
    config, out = recipe(), tmp_path / "run"
    train_run(config, data, out, refit=True)
    expected = weights(out)
    (out / "run.json").unlink()
    with pytest.raises(ArtifactError, match=r"run\.json is missing, and the weights"):
        train_run(config, data, out, resume=True, refit=True)
    for name in ("last.safetensors", "previous.safetensors", "metrics.jsonl"):
        (out / name).unlink(missing_ok=True)
    (out / "features.json").write_text("{")
    train_run(config, data, out, resume=True, refit=True)
    check_equal(weights(out), expected)
    assert not (out / "features.json").exists()


def test_complete_refit_without_its_first_pass_is_not_resumed(data, tmp_path):
    train_run(recipe(epochs=1), data, tmp_path / "run", refit=True)
    shutil.rmtree(tmp_path / "run" / "before-refit")
    with pytest.raises(ConfigError, match="run is complete and can be served"):
        train_run(recipe(epochs=1), data, tmp_path / "run", resume=True, refit=True)


def test_refit_that_fails_before_its_first_step_leaves_the_first_pass(data, tmp_path, monkeypatch):
    def fail(self):
        raise ConfigError("no")

    monkeypatch.setattr(Refit, "sentence", fail)
    config, out = recipe(epochs=1), tmp_path / "run"
    with pytest.raises(ConfigError, match="no"):
        train_run(config, data, out, refit=True)
    monkeypatch.undo()
    assert [entry.name for entry in out.iterdir()] == ["before-refit"]
    result = train_run(config, data, out, resume=True, refit=True)
    assert result.manifest["refit"]["best_epoch"] == 1


def test_refit_of_a_dataset_in_memory_stores_it_with_its_split(log, data, tmp_path):
    memory = candid.prepare(pl.read_parquet(log), time="t")
    config, out = recipe(epochs=1), tmp_path / "run"
    train_run(config, memory, out, refit=True)
    train_run(config, data, tmp_path / "other", refit=True)
    check_equal(weights(out), weights(tmp_path / "other"))
    assert np.array_equal(candid.open_dataset(out / "data").roles, data.roles)
    moved = out.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="refitted on all interactions"):
        candid.load_run(moved).evaluate("test")
    assert candid.load_run(moved / "before-refit").evaluate("test").counts["users"] == 40


def test_refit_of_a_dataset_that_was_not_prepared_is_not_measured(data, tmp_path):
    bare = PreparedDataset(data.item_ids, data.user_offsets, data.roles, data.users, data.items)
    refitted = candid.train(bare, table(epochs=1), out=tmp_path / "run", refit=True, quiet=True)
    with pytest.raises(ConfigError, match="refitted on all interactions"):
        refitted.evaluate("test")
    with pytest.raises(ConfigError, match="refitted on all interactions"):
        candid.load_run(tmp_path / "run", bare).evaluate("test")


def test_refit_without_validation_is_refused(everything, tmp_path):
    with pytest.raises(ConfigError, match=r"no validation split.*leave out --refit"):
        train_run(recipe(), everything, tmp_path / "run", refit=True)
    assert not (tmp_path / "run").exists()


def test_refit_without_the_order_of_interactions_is_refused(log, tmp_path):
    interactions = pl.read_parquet(log)
    roles = pl.Series("role", ["test", "validation", "train"]).gather(
        np.arange(interactions.height) % 3
    )
    split = {"kind": "column", "column": "role"}
    data = candid.prepare(interactions.with_columns(roles), order="t", split=split)
    check_can_refit(data)
    earlier = replace(data, order_ranks=None)
    with pytest.raises(ConfigError, match=r"prepared by an earlier version.*prepare it again"):
        train_run(recipe(), earlier, tmp_path / "run", refit=True)


def test_refit_is_resumed_with_its_own_settings_only(data, tmp_path):
    with pytest.raises(ArtifactError, match="is not a run"):
        train_run(recipe(), data, tmp_path / "none", resume=True, refit=True)
    train_run(recipe(epochs=1), data, tmp_path / "plain")
    with pytest.raises(ConfigError, match="was started without --refit"):
        train_run(recipe(epochs=1), data, tmp_path / "plain", resume=True, refit=True)
    train_run(recipe(epochs=1), data, tmp_path / "run", refit=True)
    (tmp_path / "run" / "before-refit").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="was started with --refit"):
        train_run(recipe(epochs=1), data, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match=r"whose length is fixed.*\[training\]"):
        train_run(recipe(epochs=2), data, tmp_path / "run", resume=True, refit=True)


@pytest.mark.slow
def test_refit_survives_sigterm_in_a_process(data, tmp_path):
    settings = ["training.epochs=12", "training.validate_every=12", "training.log_every=100"]
    recipe_file = tmp_path / "walk.toml"
    recipe_file.write_text(
        'name = "walk"\ndevice = "cpu"\nsampler = "popularity"\n'
        "[batches]\nbatch_size = 8\nmax_length = 4\n"
        '[model]\nquery_tower = { type = "causal_transformer", dim = 8, num_blocks = 1 }\n'
        'item_tower = { type = "item_embedding", dim = 8 }\n'
        '[loss]\ntype = "sampled_softmax"\n'
        '[evaluation]\nks = [1, 5]\nmetric = "ndcg@5"\n'
    )

    def start(out, *flags):
        command = [sys.executable, "-m", "candid", "train", str(recipe_file), "--refit"]
        command += [
            "--data",
            str(data.path),
            "--out",
            str(out),
            "--no-baselines",
            "--quiet",
            *flags,
        ]
        command += [part for setting in settings for part in ("--set", setting)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def stop(process, checkpoint):
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
        assert f"wrote {checkpoint}: run the same command with --resume" in error
        assert process.returncode == 130

    out, whole = tmp_path / "cut", tmp_path / "whole"
    stop(start(out), out / "before-refit" / LAST)
    stop(start(out, "--resume"), out / LAST)
    for process in (start(out, "--resume"), start(whole)):
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
    check_equal(weights(whole), weights(out))
    assert json.loads((out / "run.json").read_text())["refit"]["best_epoch"] == 12
