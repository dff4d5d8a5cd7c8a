"""The validated models that a run keeps, serves and verifies."""

import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.config import parse_config
from candid.errors import ArtifactError, ConfigError
from candid.runs import load_run, train_run
from candid.training import BEST, LAST, load_model, read_checkpoint

TABLE = {
    "name": "walk",
    "device": "cpu",
    "batches": {"batch_size": 8, "max_length": 4},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "loss": {"type": "full_softmax"},
    "evaluation": {"ks": [5], "metric": "ndcg@5"},
}
TRAINING = {"epochs": 2, "warmup_steps": 0, "average": 0.5, "validate_every_steps": 2}


@pytest.fixture(scope="module")
def data():
    users, steps = np.divmod(np.arange(30 * 6), 6)
    table = pl.DataFrame({"user_id": users, "item_id": (users + steps) % 12, "t": steps})
    return candid.prepare(table, time="t")


def trained(data, folder, resume=False, **training):
    config = parse_config({**TABLE, "training": {**TRAINING, **training}}, "recipe")
    return train_run(config, data, folder, resume=resume)


@pytest.fixture(scope="module")
def every_model(data, tmp_path_factory):
    """The folder of a run that keeps all validated models."""
    folder = tmp_path_factory.mktemp("all") / "run"
    trained(data, folder, keep="all")
    return folder


def item_vectors(folder):
    return torch.from_numpy(load_run(folder).item_vectors()[1])


def test_run_without_validated_models_has_the_weights_of_the_last_step(data, every_model, tmp_path):
    folder = tmp_path / "none"
    trained(data, folder, keep="none", epochs=1)
    assert load_run(folder).manifest["result"]["best"] is not None
    assert not (folder / BEST).exists()
    last = load_run(folder)
    load_model(last.model, read_checkpoint(folder / LAST), folder / LAST, averaged=True)
    assert torch.equal(item_vectors(folder), torch.from_numpy(last.item_vectors()[1]))
    assert all(check.is_ok for check in candid.verify(folder))
    with pytest.raises(ConfigError, match=r"was started with training.keep = 'none', not 'best'"):
        trained(data, folder, resume=True, keep="best", epochs=1)
    trained(data, folder, resume=True, keep="none")
    last = load_run(every_model)  # of as many steps
    load_model(last.model, read_checkpoint(every_model / LAST), every_model / LAST, averaged=True)
    assert torch.equal(item_vectors(folder), torch.from_numpy(last.item_vectors()[1]))


def test_run_with_all_validated_models_names_and_verifies_them(data, every_model):
    result = load_run(every_model).manifest["result"]
    steps = [*range(2, result["steps"], 2), result["steps"]]
    assert result["checkpoints"] == [f"checkpoints/step-{step}.safetensors" for step in steps]
    best = every_model / f"checkpoints/step-{result['best_step']}.safetensors"
    one, other = read_checkpoint(best).tensors, read_checkpoint(every_model / BEST).tensors
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    checks = {check.path: check for check in candid.verify(every_model)}
    assert {every_model / name for name in result["checkpoints"]} <= checks.keys()
    assert all(check.is_ok for check in checks.values())


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_damaged_validated_model_is_reported(every_model, tmp_path, damage):
    path = every_model / "checkpoints" / "step-2.safetensors"
    content = path.read_bytes()
    try:
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        damaged = [check.path for check in candid.verify(every_model) if not check.is_ok]
    finally:
        path.write_bytes(content)
    assert damaged == [path]


def test_checkpoints_of_sharded_tables_are_verified(data, tmp_path):
    folder = tmp_path / "run"
    table = {
        **TABLE,
        "loss": {"type": "sampled_softmax"},
        "sampler": {"type": "uniform", "num_candidates": 4},
        "training": {"tables": "sharded_row_adam", "epochs": 1},
    }
    train_run(parse_config(table, "recipe"), data, folder)
    (shards,) = (folder / "checkpoints").glob("step-*")
    files = [shards / name for name in ("manifest.json", "rank-0.safetensors")]
    checked = {check.path for check in candid.verify(folder) if check.is_ok}
    assert {*files, shards / "shared.safetensors"} <= checked
    for path, damaged in zip(files, [b"", files[1].read_bytes()[:-1]], strict=True):
        content = path.read_bytes()
        path.write_bytes(damaged)
        assert [check.path for check in candid.verify(folder) if not check.is_ok] == [path]
        path.write_bytes(content)


def test_missing_best_model_is_refused(every_model):
    best = every_model / BEST
    content = best.read_bytes()
    best.unlink()
    with pytest.raises(ArtifactError, match=f"{BEST} is missing"):
        load_run(every_model)
    best.write_bytes(content)
