"""Checkpoints are whole, belong to one model, and hold what was put in."""

import errno

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from candid.atomic import umask
from candid.errors import ArtifactError, CandidError
from candid.training import (
    Checkpoint,
    TrainingConfig,
    UnsetWeights,
    load_model,
    read_checkpoint,
    write_checkpoint,
)
from candid.training.checkpoint import load_optimizer, model_tensors, optimizer_tensors
from candid.training.optimizer import make_optimizer


class Tied(nn.Module):
    def __init__(self, rows=4):
        super().__init__()
        self.table = nn.Embedding(rows, 3)
        self.again = self.table
        self.out = nn.Linear(3, 1)


def written(path, model=None):
    model = model or Tied()
    write_checkpoint(path, Checkpoint(model_tensors(model), {"epoch": 3}))
    return model


def test_round_trip_keeps_a_shared_table_once(tmp_path):
    path = tmp_path / "a.safetensors"
    model = written(path)
    checkpoint = read_checkpoint(path)
    assert sorted(checkpoint.part("model")) == ["out.bias", "out.weight", "table.weight"]
    assert checkpoint.meta == {"epoch": 3}
    other = Tied()
    load_model(other, checkpoint, path)
    assert torch.equal(other.again.weight, model.table.weight)
    assert torch.equal(other.out.weight, model.out.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_that_will_be_set_are_not_drawn(tmp_path):
    path = tmp_path / "a.safetensors"
    model = written(path)
    state = torch.get_rng_state()
    with UnsetWeights():
        other = Tied()
        nn.init.xavier_normal_(other.out.weight)
        other.table.weight.data.normal_().uniform_()
    assert torch.equal(torch.get_rng_state(), state)
    load_model(other, read_checkpoint(path), path)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert len(torch.randn(100).unique()) > 90  # afterwards all is as before


def test_a_checkpoint_that_may_not_be_read_is_not_missing(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    written(path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ArtifactError, match="cannot be read: give this user the permission"):
        read_checkpoint(path)


def test_moments_go_back_to_their_parameter():
    torch.manual_seed(0)
    first, second = Tied(), Tied()
    second.load_state_dict(first.state_dict())
    made = [make_optimizer(m, TrainingConfig()) for m in (first, second)]
    for _ in range(3):
        step(first, made[0])
    tensors = model_tensors(first) | optimizer_tensors(first, made[0])
    checkpoint = Checkpoint({k: v.clone() for k, v in tensors.items()}, {})
    load_model(second, checkpoint, None)
    load_optimizer(second, made[1], checkpoint)
    step(first, made[0])
    step(second, made[1])
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_of_another_rule_are_refused():
    model = Tied()
    optimizer = make_optimizer(model, TrainingConfig())
    checkpoint = Checkpoint({"optimizer/table.weight/visits": torch.zeros(4)}, {})
    with pytest.raises(ArtifactError, match=r"'visits' of 'table\.weight'"):
        load_optimizer(model, optimizer, checkpoint)


def step(model, optimizer):
    optimizer.zero_grad()
    model.out(model.again(torch.tensor([0, 1, 2]))).pow(2).sum().backward()
    optimizer.step(0.1)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_named(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    written(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"cut\.safetensors is damaged"):
        read_checkpoint(path)


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_checkpoint(tmp_path / "missing.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ArtifactError, match="not written by candid"):
        read_checkpoint(foreign)
    save_file({"x": torch.zeros(1)}, foreign, metadata={"candid": '{"format": 999}'})
    with pytest.raises(ArtifactError, match="another checkpoint format"):
        read_checkpoint(foreign)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    written(path)
    checkpoint = read_checkpoint(path)
    with pytest.raises(ArtifactError, match=r"'table\.weight' of shape \(4, 3\).*\(5, 3\)"):
        load_model(Tied(rows=5), checkpoint, path)
    with pytest.raises(ArtifactError, match=r"unknown parameter 'out\.bias'"):
        load_model(nn.ModuleDict({"table": nn.Embedding(4, 3)}), checkpoint, path)
    bigger = Tied()
    bigger.more = nn.Linear(1, 1, bias=False)
    with pytest.raises(ArtifactError, match=r"lacks parameter 'more\.weight'"):
        load_model(bigger, checkpoint, path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    written(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("candid.training.checkpoint.save_file", full)
    with pytest.raises(CandidError, match=r"cannot write .*No space left"):
        written(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
