"""The verb ``candid tune``: a search, its budget, pruning, interruption and resume."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from candid.checksums import sealed
from candid.config import load_recipe
from candid.data import Role, open_dataset
from candid.errors import DataError
from candid.evaluation import evaluate
from candid.runs import validation
from candid.tuning import loop, search, trial_progress

FAST = ["--set", "training.epochs=3"]
SPACE = """
[space]
training.lr = { low = 1e-4, high = 1e-1, log = true }
model.query_tower.dim = { choices = [4, 8], also = ["model.item_tower.dim"] }
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def tune(candid, toy, space):
    def call(out, *flags, fast=FAST, minutes=60):
        settings = ["--data", toy.data, "--out", out, "--space", space, "--minutes", minutes]
        return candid("tune", toy.recipe, *map(str, settings), *fast, *flags)

    return call


@pytest.fixture(scope="module")
def complete(toy, space, tmp_path_factory):
    """An uninterrupted search of three trials."""
    from candid.cli import run

    out = tmp_path_factory.mktemp("tuned") / "search"
    flags = ["--data", toy.data, "--out", out, "--space", space, "--trials", "3", "--quiet"]
    assert run(["tune", *map(str, [toy.recipe, *flags]), *FAST]) == 0
    return out


def trials_of(folder):
    return json.loads((folder / "trials.json").read_text())["trials"]


def outcome(trial):
    return {key: trial[key] for key in ("values", "status", "validations", "best", "best_epoch")}


def change(folder, edit):
    content = json.loads((folder / "trials.json").read_text())
    edit(content["trials"])
    (folder / "trials.json").write_text(json.dumps(sealed(content)))


def test_search_writes_trials_and_the_best_recipe(complete, toy):
    trials = trials_of(complete)
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert trials[0]["values"] == {"training.lr": 1e-3, "model.query_tower.dim": 8}
    assert all(len(trial["validations"]) == 3 for trial in trials)
    for trial in trials:
        run = json.loads((complete / f"trials/{trial['number']:04}/run.json").read_text())
        assert run["result"]["best"] == trial["best"]
        assert run["config"]["seed"] == 0
        values = trial["values"]
        assert run["config"]["training"]["lr"] == values["training.lr"]
        for tower in ("query_tower", "item_tower"):
            assert run["config"]["model"][tower]["dim"] == values["model.query_tower.dim"]
    best = max(trials, key=lambda trial: trial["best"])
    text = (complete / "best.toml").read_text()
    config = load_recipe(complete / "best.toml")
    assert config.training.lr == best["values"]["training.lr"]
    assert f"of this recipe: {best['best']:.4f}" in text
    assert f"of the base recipe: {trials[0]['best']:.4f}" in text
    assert "# trials: 3 (3 complete)" in text
    assert "too high: it is the best of 3" in text
    assert f"candid train {complete}/best.toml --data {toy.data} --out runs/toy-seed-1" in text


def test_best_recipe_trains_to_the_value_of_its_trial(candid, complete, toy, tmp_path):
    short = ["--data", toy.data, "--out", tmp_path / "run", "--json"]
    answer = candid("train", complete / "best.toml", *short)
    assert answer.code == 0, answer.err
    best = max(trial["best"] for trial in trials_of(complete))
    assert answer.document["result"]["best"] == best


def test_output_is_one_document_or_a_table(tune, complete, tmp_path):
    answer = tune(complete, "--resume", "--trials", "3", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.document["counts"] == {"complete": 3}
    assert answer.document["base"]["number"] == 0
    assert answer.document["recipe"] == str(complete / "best.toml")
    answer = tune(complete, "--resume", "--trials", "3", "--quiet")
    assert "best trials by validation ndcg@10" in answer.out
    assert "base recipe" in answer.out
    assert answer.err == ""


def test_progress_has_a_line_for_each_trial(tune, tmp_path):
    answer = tune(tmp_path / "s", "--trials", "1")
    assert answer.code == 0, answer.err
    assert "searching training.lr, model.query_tower.dim for 60 CPU minutes" in answer.err
    assert "trial 0  complete  ndcg@10" in answer.err
    assert "no trial is better than the base recipe" in answer.out


def test_test_split_is_not_measured(tune, monkeypatch, tmp_path):
    roles = []

    def spy(*arguments, role, **settings):
        roles.append(role)
        return evaluate(*arguments, role=role, **settings)

    monkeypatch.setattr(validation, "evaluate", spy)
    assert tune(tmp_path / "s", "--trials", "2", "--quiet").code == 0
    assert roles == [Role.VALIDATION] * 6
    files = [path.name for path in (tmp_path / "s").rglob("*")]
    assert not [name for name in files if "evaluation" in name]


def killed_in_trial_1(number):
    """A program that sends a signal to itself after the second validation of trial 1."""
    return (
        "import os, signal, sys\n"
        "from candid.cli import main\n"
        "from candid.tuning.trial_progress import TrialProgress\n"
        "record = TrialProgress.on_validation\n"
        "def on_validation(self, state, metrics):\n"
        "    record(self, state, metrics)\n"
        "    if self._trial.number == 1 and state.epoch == 2:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "TrialProgress.on_validation = on_validation\n"
        "main()\n"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_search_that_was_stopped_resumes_to_the_same_trials(
    tune, complete, toy, space, tmp_path, number
):
    out = tmp_path / "s"
    flags = [toy.recipe, "--data", toy.data, "--out", out, "--space", space, "--trials", "3"]
    command = [sys.executable, "-c", killed_in_trial_1(number), "tune", *map(str, flags), *FAST]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, check=False)
    killed = number is signal.SIGKILL
    assert done.returncode == (-signal.SIGKILL if killed else 130), done.stderr
    if not killed:
        assert "stopped in trial 1; run the same command with --resume" in done.stderr
    stopped = trials_of(out)
    assert [trial["status"] for trial in stopped] == [
        "complete",
        "running" if killed else "stopped",
    ]
    assert len(stopped[1]["validations"]) == 2
    assert (out / "trials/0001").exists()
    assert (out / "best.toml").exists()
    answer = tune(out, "--trials", "3", "--resume", "--quiet")
    assert answer.code == 0, answer.err
    assert [outcome(one) for one in trials_of(out)] == [outcome(one) for one in trials_of(complete)]
    assert load_recipe(out / "best.toml") == load_recipe(complete / "best.toml")
    assert [one["attempts"] for one in trials_of(out)] == [1, 2 if killed else 1, 1]


def test_interruption_while_a_trial_is_pruned_ends_the_search(tune, monkeypatch, tmp_path):
    def interrupted(trial, trials, warmup):
        os.kill(os.getpid(), signal.SIGINT)
        return True

    monkeypatch.setattr(trial_progress, "is_worse", interrupted)
    answer = tune(tmp_path / "s", "--trials", "4", "--quiet")
    assert answer.code == 130
    assert "stopped in trial 1; run the same command with --resume" in answer.err
    assert [trial["status"] for trial in trials_of(tmp_path / "s")] == ["complete", "pruned"]


def test_trial_whose_process_was_killed_twice_is_given_up(tune, complete, tmp_path):
    out = tmp_path / "s"
    out.mkdir()
    content = json.loads((complete / "trials.json").read_text())
    content["trials"] = content["trials"][:2]
    content["trials"][1] |= {"status": "running", "attempts": 2, "validations": {}, "best": None}
    (out / "trials.json").write_text(json.dumps(sealed(content)))
    assert tune(out, "--trials", "2", "--resume", "--quiet").code == 0
    trial = trials_of(out)[1]
    assert (trial["status"], trial["reason"]) == (
        "failed",
        "the process was killed 2 times during it",
    )


@pytest.mark.parametrize(("others", "status"), [(0.99, "pruned"), (0.0, "complete")])
def test_trial_worse_than_the_median_is_pruned(tune, tmp_path, others, status):
    out, longer = tmp_path / "s", ["--set", "training.epochs=4"]
    assert tune(out, "--trials", "1", "--quiet", fast=longer).code == 0

    def add_earlier_trials(trials):
        for number in range(1, 5):
            values = {"training.lr": number / 100, "model.query_tower.dim": 4}
            curve = {str(epoch): others for epoch in range(1, 5)}
            changed = {"number": number, "values": values, "validations": curve, "best": others}
            trials.append(trials[0] | changed)

    change(out, add_earlier_trials)
    answer = tune(out, "--trials", "6", "--resume", "--quiet", fast=longer)
    assert answer.code == 0, answer.err
    trial = trials_of(out)[5]
    assert trial["status"] == status
    # The first epochs are not compared.
    assert list(trial["validations"]) == (["1", "2"] if status == "pruned" else list("1234"))
    assert not (out / "trials/0005").exists() or status == "complete"


def test_budget_ends_the_last_trial_and_more_budget_continues(tune, tmp_path):
    out = tmp_path / "s"
    answer = tune(out, "--quiet", minutes=1e-6)
    assert answer.code == 0, answer.err
    [trial] = trials_of(out)
    assert (trial["status"], list(trial["validations"])) == ("stopped", ["1"])
    assert "a search needs about 20: continue with --resume and --minutes 1" in answer.out
    assert "# The best recipe of 1 trial on" in (out / "best.toml").read_text()
    assert load_recipe(out / "best.toml").training.epochs == 3
    again = tune(out, "--resume", "--quiet", "--trials", "2")
    assert again.code == 0, again.err
    assert [one["status"] for one in trials_of(out)] == ["complete", "complete"]
    assert trials_of(out)[0]["cpu_seconds"] > trial["cpu_seconds"]


@pytest.mark.parametrize(("is_damaged", "epochs"), [(False, 2), (True, 3)])
def test_stopped_trial_continues_from_its_checkpoint(
    tune, complete, monkeypatch, tmp_path, is_damaged, epochs
):
    """A trial may take hours: what it trained is used, unless its checkpoint is damaged."""
    out = tmp_path / "s"

    def is_over_budget(self):
        return any(len(trial.validations) == 2 for trial in self.history.trials)

    with monkeypatch.context() as patch:  # the checkpoint of epoch 2 follows its validation
        patch.setattr(loop._Search, "is_over_budget", is_over_budget)
        assert tune(out, "--quiet").code == 0
    assert trials_of(out)[0]["status"] == "stopped"
    if is_damaged:
        for checkpoint in (out / "trials/0000").glob("*.safetensors"):
            checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    measured = []

    def spy(*arguments, **settings):
        measured.append(1)
        return evaluate(*arguments, **settings)

    monkeypatch.setattr(validation, "evaluate", spy)
    answer = tune(out, "--resume", "--quiet", "--trials", "1")
    assert answer.code == 0, answer.err
    assert len(measured) == epochs
    assert outcome(trials_of(out)[0]) == outcome(trials_of(complete)[0])


def test_search_killed_before_its_first_record_begins_anew(tune, tmp_path):
    # As a kill leaves it: the temporary file of the first record, and its lock.
    for suffix in ("lock", "tmp"):
        (tmp_path / f".trials.json.{'a' * 32}.{suffix}").touch()
    assert tune(tmp_path, "--trials", "1").code == 0
    assert [path.name for path in tmp_path.glob(".trials*")] == []


def test_budget_below_one_validation_is_one_sentence(tune, tmp_path):
    short = [*FAST, "--set", "training.log_every=1", "--set", "batches.batch_size=8"]
    answer = tune(tmp_path / "s", "--quiet", fast=short, minutes=1e-6)
    assert (answer.code, answer.out) == (2, "")
    assert "1e-06 CPU minutes ended before; continue with --resume and more" in answer.err


def test_trial_whose_settings_do_not_fit_fails_and_a_finite_space_ends(candid, toy, tmp_path):
    (tmp_path / "s.toml").write_text("[space]\nmodel.query_tower.dim = { choices = [8, 16] }")
    flags = ["--data", toy.data, "--out", tmp_path / "s", "--space", tmp_path / "s.toml"]
    answer = candid("tune", toy.recipe, *flags, *FAST)
    assert answer.code == 0, answer.err
    trials = trials_of(tmp_path / "s")
    assert [trial["status"] for trial in trials] == ["complete", "failed"]
    assert "query_tower.dim must equal item_tower.dim 8" in trials[1]["reason"]
    assert f"trial 1  failed: {trials[1]['reason']}" in answer.err
    assert "the space has no further values" in answer.out


def test_base_recipe_that_cannot_be_trained_leaves_an_empty_folder(tune, tmp_path):
    wrong = [*FAST, "--set", "model.item_tower.dim=4"]
    answer = tune(tmp_path / "s", fast=wrong)
    assert answer.code == 2
    assert "must equal" in answer.err
    assert list((tmp_path / "s").iterdir()) == []


def test_failed_start_removes_its_own_files_alone(tune, complete, tmp_path):
    """A search that was killed in its first trial, and that cannot be continued."""
    out = tmp_path / "s"
    shutil.copytree(complete, out)
    for name in ("0000", "0001", "0002"):
        shutil.rmtree(out / "trials" / name, ignore_errors=True)

    def running(trials):
        del trials[1:]
        trials[0] |= {"status": "running", "validations": {}, "attempts": 1}

    change(out, running)
    (out / "notes.txt").write_text("mine")
    (out / "trials" / "0000").write_text("in the way")
    answer = tune(out, "--resume", "--quiet", "--trials", "1")
    assert answer.code == 2, answer.err
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "trials"]
    assert (out / "notes.txt").read_text() == "mine"


def test_search_needs_the_extra(tune, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = tune(tmp_path / "s")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines()[-1] == (
        "error: candid tune needs optuna, which is not installed; run pip install "
        "'candid-retrieval[tune]'"
    )
    assert not (tmp_path / "s").exists()


def test_dataset_without_validation_is_refused(toy, tmp_path):
    dataset = open_dataset(toy.data)
    roles = np.where(dataset.roles == Role.VALIDATION, Role.TRAIN, dataset.roles)
    with pytest.raises(DataError, match="no validation split"):
        search(dataclasses.replace(dataset, roles=roles), out=tmp_path / "s")


def test_bad_usage_has_its_exit_code(candid, tune, toy, complete, tmp_path):
    assert candid("tune", "--out", tmp_path / "s").code == 2
    assert "needs --out FOLDER" in candid("tune", "--data", toy.data).err
    assert candid("tune", "--data", tmp_path / "missing", "--out", tmp_path / "s").code == 4
    answer = tune(complete)
    assert (answer.code, answer.err.count("already holds a search: continue it with --resume")) == (
        2,
        1,
    )
    answer = tune(tmp_path / "s", "--resume")
    assert (answer.code, answer.err.count("holds no search to resume")) == (2, 1)
    answer = tune(complete, "--resume", "--set", "seed=1")
    assert (answer.code, answer.err.count("another base recipe")) == (2, 1)
    assert tune(tmp_path / "s", minutes=0).code == 2


def test_default_recipe_and_space_are_searched_without_files(candid, toy, tmp_path):
    fast = ["--set", "training.max_steps=2", "--trials", "2", "--quiet"]
    answer = candid("tune", "--data", toy.data, "--out", tmp_path / "s", *fast)
    assert answer.code == 0, answer.err
    recipe = tomllib.loads((tmp_path / "s/best.toml").read_text())
    assert recipe["name"] == "data"
    assert len(trials_of(tmp_path / "s")[1]["values"]) == 5


def test_rules_of_the_default_recipe_follow_the_values_of_a_trial(candid, toy, tmp_path):
    """32 of 40 histories in a batch are 2 steps an epoch, 8 are 5."""
    (tmp_path / "s.toml").write_text("[space]\nbatches.batch_size = { choices = [8, 32] }")
    flags = ["--data", toy.data, "--out", tmp_path / "s", "--space", tmp_path / "s.toml"]
    answer = candid("tune", *flags, "--set", "training.epochs=12", "--quiet")
    assert answer.code == 0, answer.err
    steps = {}
    for trial in trials_of(tmp_path / "s"):
        run = json.loads((tmp_path / f"s/trials/{trial['number']:04}/run.json").read_text())
        size, training = run["config"]["batches"]["batch_size"], run["config"]["training"]
        steps[size] = (training["warmup_steps"], training["patience"])
    assert steps == {8: (3, 20), 16: (1, 34), 32: (1, 50)}
    recipe = (tmp_path / "s/best.toml").read_text()
    assert "# 5 % of " in recipe
