"""Training runs: reproducible from a seed, exact to resume, refused when they cannot work."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.overrides import TorchFunctionMode

from candid.batches import BatchesConfig, offsets_of
from candid.checksums import sealed
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.errors import ArtifactError, ConfigError, DataError
from candid.runs import MANIFEST, load_run, pick_device, train_run
from candid.runs.earlier_run import open_earlier_run
from candid.runs.trained_ids import ITEMS, USERS
from candid.training import BEST, LAST, PREVIOUS, read_checkpoint

NUM_ITEMS = 15


def dataset(num_users=40, length=8, seed=0):
    """Every user walks through the catalog in order; the last two steps are held out."""
    starts = np.random.default_rng(seed).integers(0, NUM_ITEMS, num_users)
    roles = np.zeros((num_users, length), dtype=np.uint8)
    roles[:, -2], roles[:, -1] = Role.VALIDATION, Role.TEST
    return PreparedDataset(
        item_ids=((starts[:, None] + np.arange(length)) % NUM_ITEMS).ravel().astype(np.int32),
        user_offsets=offsets_of(np.full(num_users, length)),
        roles=roles.ravel(),
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS)}),
        manifest={"fingerprint": f"walk-{seed}"},
    )


def recipe(seed=0, **training):
    tower = {"type": "causal_transformer", "dim": 8, "num_blocks": 1, "dropout": 0.3}
    return parse_config(
        {
            "name": "walk",
            "seed": seed,
            "device": "cpu",
            "batches": {"batch_size": 8, "max_length": 8, "num_workers": 2},
            "model": {"query_tower": tower, "item_tower": {"type": "item_embedding", "dim": 8}},
            "sampler": {"type": "mixture", "components": ["popularity", "in_batch"]},
            "loss": {"type": "sampled_softmax"},
            "training": {"epochs": 3, "lr": 0.01, "trackers": ["jsonl"], "log_every": 1} | training,
            "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "intervals": True},
        },
        "test",
    )


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_run_is_reproducible_from_its_seed(tmp_path):
    data = dataset()
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        train_run(recipe(seed), data, tmp_path / name)
    one, again, other = (
        read_checkpoint(tmp_path / name / LAST).part("model") for name in ("one", "again", "other")
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(
        torch.equal(one[name], other[name]) for name in one if name.endswith("qkv.weight")
    )
    assert losses(tmp_path / "one") == losses(tmp_path / "again") != losses(tmp_path / "other")
    reports = [load_run(tmp_path / n, data).evaluate().to_json() for n in ("one", "again")]
    assert reports[0] == reports[1]


class RandomFills(TorchFunctionMode):
    """Counts the calls that fill a tensor with random numbers."""

    def __init__(self):
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.nn.init.normal_, torch.Tensor.normal_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tables", ["dense", "row_adam", "sharded_row_adam"])
def test_run_resumed_twice_equals_the_whole_run_and_samples_no_weights_again(tmp_path, tables):
    data, numbers = dataset(), []
    whole = train_run(recipe(tables=tables), data, tmp_path / "whole")
    for steps in (4, 11, None):
        config = recipe(tables=tables) if steps is None else recipe(tables=tables, max_steps=steps)
        with RandomFills() as fills:
            cut = train_run(config, data, tmp_path / "cut", resume=steps != 4)
        numbers.append(fills.count)
    one, two = (read_checkpoint(r.folder / LAST).tensors for r in (whole, cut))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert numbers[0] > 0
    assert numbers[1:] == [0, 0]


def without_result(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["result"]
    (folder / MANIFEST).write_text(json.dumps(sealed(manifest)))


def test_resume_without_a_checkpoint_starts_again(tmp_path):
    data = dataset()
    whole = train_run(recipe(), data, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    manifest = json.loads((whole.folder / MANIFEST).read_text())
    del manifest["result"]
    (tmp_path / "killed" / MANIFEST).write_text(json.dumps(sealed(manifest)))
    resumed = train_run(recipe(), data, tmp_path / "killed", resume=True)
    assert resumed.state.best == whole.state.best
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.parametrize("kept", [BEST, MANIFEST])
def test_resume_of_a_run_that_lost_its_checkpoints_is_refused(tmp_path, kept):
    data, out = dataset(), tmp_path / "run"
    train_run(recipe(epochs=6), data, out)
    for name in {BEST, LAST, PREVIOUS} - {kept}:
        (out / name).unlink(missing_ok=True)
    if kept == BEST:
        assert read_checkpoint(out / BEST).meta["state"]["epoch"] > 1
        without_result(out)
    before = {path.name: path.read_bytes() for path in out.glob("*.*")}
    with pytest.raises(ArtifactError, match=f"has neither {LAST} nor {PREVIOUS}"):
        train_run(recipe(epochs=7), data, out, resume=True)
    assert {path.name: path.read_bytes() for path in out.glob("*.*")} == before


def test_resume_after_a_kill_before_the_first_checkpoint_starts_again(tmp_path):
    """The best weights of the first epoch are written before its checkpoint."""
    data, out = dataset(), tmp_path / "killed"
    whole = train_run(recipe(), data, tmp_path / "whole")
    train_run(recipe(epochs=1), data, out)
    for name in (LAST, PREVIOUS):
        (out / name).unlink(missing_ok=True)
    without_result(out)
    resumed = train_run(recipe(), data, out, resume=True)
    assert resumed.state.best == whole.state.best
    assert losses(out) == losses(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_resume_writes_damaged_tables_of_ids_again(tmp_path, damage):
    data, out = dataset(), tmp_path / "run"
    train_run(recipe(epochs=1), data, out)
    before = {name: (out / name).read_bytes() for name in (ITEMS, USERS)}
    for name in before:
        if damage == "missing":
            (out / name).unlink()
        else:
            (out / name).write_bytes(before[name][:-1])
        # A missing table counts as damaged: the ids of the dataset do not replace it.
        with pytest.raises(ArtifactError, match=name):
            open_earlier_run(out)
        train_run(recipe(epochs=2), data, out, resume=True)
        assert {name: (out / name).read_bytes() for name in before} == before
        open_earlier_run(out)


def test_load_run_returns_the_best_model(tmp_path):
    data = dataset()
    result = train_run(recipe(), data, tmp_path / "run")
    report = load_run(tmp_path / "run", data).evaluate("validation")
    assert report.metrics["ndcg@5"].value == pytest.approx(result.state.best, abs=1e-9)


def test_impossible_config_leaves_no_folder(tmp_path):
    config = recipe()
    evaluation = config.evaluation.model_copy(update={"ks": (1, 99)})
    with pytest.raises(ConfigError, match="99 exceeds the 15 items"):
        train_run(config.model_copy(update={"evaluation": evaluation}), dataset(), tmp_path / "run")
    assert not list(tmp_path.iterdir())


class Lines:
    """A display that stores the sentence of the start and the metrics of each validation."""

    def __init__(self):
        self.start, self.validations = None, []

    def on_start(self, targets):
        self.start = targets

    def on_step(self, state, metrics):
        pass

    def on_validation(self, state, metrics):
        self.validations.append((state.best_epoch, dict(metrics)))


def test_validation_of_a_sample_states_its_users_and_error(tmp_path):
    data, config = dataset(), recipe()
    evaluation = config.evaluation.model_copy(update={"validation_users": 15})
    config = config.model_copy(update={"evaluation": evaluation})
    lines, again = Lines(), Lines()
    train_run(config, data, tmp_path / "run", progress=lines)
    assert lines.start.endswith(
        "; validation on 15 of 40 users, the same each time (evaluation.validation_users)"
    )
    assert all(metrics["standard_error"] > 0 for _, metrics in lines.validations)
    run = load_run(tmp_path / "run", data)
    assert run.manifest["result"]["metric"] == "ndcg@5"
    # The best checkpoint is the best of the sample, which is the same at each validation.
    values = [metrics["ndcg@5"] for _, metrics in lines.validations]
    sample = config.evaluation.model_copy(update={"max_users": 15})
    assert run.evaluate("validation", sample).metrics["ndcg@5"].value == pytest.approx(max(values))
    assert lines.validations[-1][0] == 1 + int(np.argmax(values))
    train_run(config, data, tmp_path / "again", progress=again)
    assert again.validations == lines.validations


def test_validation_of_all_users_has_no_standard_error(tmp_path):
    lines = Lines()
    train_run(recipe(), dataset(), tmp_path / "run", progress=lines)
    assert "validation" not in lines.start
    assert all("standard_error" not in metrics for _, metrics in lines.validations)


@pytest.mark.parametrize("validation_users", [None, 7])
def test_validation_without_a_relevant_target_is_refused_before_training(
    tmp_path, validation_users
):
    data = dataset()
    # The validation target of every user is the first item of the walk, which is seen.
    items = data.item_ids.reshape(data.num_users, -1).copy()
    items[:, -2] = items[:, 0]
    data = replace(data, item_ids=items.ravel())
    config = recipe()

    def settings(**changes):
        evaluation = config.evaluation.model_copy(
            update={"validation_users": validation_users} | changes
        )
        return config.model_copy(update={"evaluation": evaluation})

    num_targets = validation_users or 40
    sentence = rf"ndcg@5 is undefined: all {num_targets} validation targets .* hides them.* false"
    with pytest.raises(DataError, match=sentence):
        train_run(settings(), data, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    result = train_run(settings(filter_seen=False), data, tmp_path / "run")
    values = [line["validation/ndcg@5"] for line in result.state.history]
    assert result.manifest["result"]["metric"] == "ndcg@5"
    assert result.manifest["result"]["best"] == max(values)


def test_run_that_fails_before_its_first_step_leaves_the_folder_unchanged(tmp_path):
    config = recipe(trackers=["jsonl", "tensorboard"])
    config = config.model_copy(update={"batches": BatchesConfig(unit="interaction")})
    (tmp_path / "made").mkdir()
    for name in ("new", "made"):
        with pytest.raises(ConfigError, match=r"set batches\.unit = 'sequence'"):
            train_run(config, dataset(), tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["made"]


def test_train_into_a_folder_with_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out, reason in ((tmp_path, "is not empty"), (tmp_path / "notes.txt", "is a file")):
        with pytest.raises(ConfigError, match=f"{reason}: name a new or empty folder with --out"):
            train_run(recipe(), dataset(), out)
    with pytest.raises(ArtifactError, match="cannot write"):
        train_run(recipe(), dataset(), tmp_path / "notes.txt" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_load_run_names_the_missing_part(tmp_path):
    train_run(recipe(max_steps=1), dataset(), tmp_path / "run")
    path = tmp_path / "run" / MANIFEST
    manifest = json.loads(path.read_text())
    with pytest.raises(ArtifactError, match="is not a run"):
        load_run(path)
    facts = {"dataset": {"path": "/gone", "fingerprint": "x"}}
    path.write_text(json.dumps(sealed(manifest | facts)))
    with pytest.raises(ArtifactError, match=r"trained on /gone, which does not exist.*--data"):
        load_run(tmp_path / "run")
    manifest["config"]["loss"]["type"] = "hinge"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"run\.json differs from its checksum; restore it"):
        load_run(tmp_path / "run", dataset())
    path.write_text(json.dumps(sealed(manifest)))
    with pytest.raises(ArtifactError, match=r"run\.json: unknown loss 'hinge'.*train again"):
        load_run(tmp_path / "run", dataset())


def test_run_of_an_older_format_is_refused(tmp_path):
    train_run(recipe(max_steps=1), dataset(), tmp_path / "run")
    path = tmp_path / "run" / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["format"]
    path.write_text(json.dumps(manifest))
    sentence = "holds a run of format 1 and this version of candid reads format 3: train again"
    with pytest.raises(ArtifactError, match=sentence):
        load_run(tmp_path / "run", dataset())
    with pytest.raises(ArtifactError, match=sentence):
        train_run(recipe(), dataset(), tmp_path / "run", resume=True)


def test_training_refuses_a_run_behind_a_link(tmp_path):
    train_run(recipe(max_steps=2), dataset(), tmp_path / "run")
    (tmp_path / "live").symlink_to("run")
    with pytest.raises(ConfigError, match=r"live is a link to a run, .* train into a new folder"):
        train_run(recipe(), dataset(), tmp_path / "live")


def test_resume_and_load_refuse_another_recipe_or_dataset(tmp_path):
    train_run(recipe(max_steps=2), dataset(), tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run: continue it with --resume"):
        train_run(recipe(), dataset(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another section \[seed\]"):
        train_run(recipe(seed=1), dataset(), tmp_path / "run", resume=True)
    for key, other in (("metric", "recall@5"), ("filter_seen", False)):
        evaluation = recipe().evaluation.model_copy(update={key: other})
        config = recipe().model_copy(update={"evaluation": evaluation})
        with pytest.raises(ConfigError, match=rf"best model by evaluation\.{key} = .*{other}"):
            train_run(config, dataset(), tmp_path / "run", resume=True)
    with pytest.raises(ArtifactError, match="another dataset"):
        train_run(recipe(), dataset(seed=5), tmp_path / "run", resume=True)
    with pytest.raises(ArtifactError, match="another version of the dataset"):
        load_run(tmp_path / "run", dataset(seed=5))
    assert load_run(tmp_path / "run").dataset.path == tmp_path / "run" / "data"


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_missing_device_is_refused(name):
    with pytest.raises(ConfigError, match=rf"device '{name}' cannot be used here"):
        pick_device(name)


def test_device_without_float64_is_refused(monkeypatch):
    def empty(size, device, dtype=torch.float32):
        if dtype == torch.float64:
            raise TypeError("the framework doesn't support float64")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ConfigError, match=r"'mps' cannot be used here: .* float64"):
        pick_device("mps")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_run_on_cuda_has_equal_metrics_on_the_cpu(tmp_path):
    data = dataset()
    config = recipe(precision="bfloat16").model_copy(update={"device": "cuda"})
    train_run(config.model_copy(update={"training": recipe(max_steps=4).training}), data, tmp_path)
    train_run(config, data, tmp_path, resume=True)
    run = load_run(tmp_path, data)
    assert run.model.device.type == "cuda"
    on_cuda = run.evaluate("validation").metrics
    run.model.cpu()
    on_cpu = run.evaluate("validation").metrics
    assert on_cuda["nll"].value == pytest.approx(on_cpu["nll"].value, rel=1e-3)
    assert on_cuda["ndcg@5"].value == pytest.approx(on_cpu["ndcg@5"].value, abs=0.05)
