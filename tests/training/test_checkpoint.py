"""Checkpoints are written completely, belong to one model and restore its state."""

import errno
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from candid.atomic import umask
from candid.checksums import verification
from candid.errors import ArtifactError, CandidError
from candid.losses import LOSSES
from candid.losses.candidate_loss import ObjectiveWithSampler
from candid.samplers import CrossBatchMemory, Uniform
from candid.training import (
    Checkpoint,
    TrainingConfig,
    UnsetWeights,
    load_model,
    read_checkpoint,
    write_checkpoint,
)
from candid.training.checkpoint import (
    DamagedCheckpointError,
    load_loss,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
)
from candid.training.optimizer import make_optimizer


class Tied(nn.Module):
    def __init__(self, rows=4):
        super().__init__()
        self.table = nn.Embedding(rows, 3)
        self.again = self.table
        self.out = nn.Linear(3, 1)


def write_example(path, model=None):
    model = model or Tied()
    write_checkpoint(path, Checkpoint(model_tensors(model), {"epoch": 3}))
    return model


def test_round_trip_keeps_a_shared_table_once(tmp_path):
    path = tmp_path / "a.safetensors"
    model = write_example(path)
    checkpoint = read_checkpoint(path)
    assert sorted(checkpoint.part("model")) == ["out.bias", "out.weight", "table.weight"]
    assert checkpoint.meta == {"epoch": 3}
    other = Tied()
    load_model(other, checkpoint, path)
    assert torch.equal(other.again.weight, model.table.weight)
    assert torch.equal(other.out.weight, model.out.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_unset_weights_skip_the_random_initialisation(tmp_path):
    path = tmp_path / "a.safetensors"
    model = write_example(path)
    state = torch.get_rng_state()
    with UnsetWeights():
        other = Tied()
        nn.init.xavier_normal_(other.out.weight)
        other.table.weight.data.normal_().uniform_()
    assert torch.equal(torch.get_rng_state(), state)
    load_model(other, read_checkpoint(path), path)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert len(torch.randn(100).unique()) > 90  # afterwards random numbers are as before


def test_checkpoint_without_read_permission_is_not_called_missing(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_example(path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ArtifactError, match="cannot be read: give this user read permission"):
        read_checkpoint(path)


def test_moments_are_restored_by_parameter():
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


def test_moments_of_another_optimizer_are_refused():
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
def test_truncated_checkpoint_is_named(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    write_example(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"cut\.safetensors is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", pytest.param("[" * 100_000, id="nested"), "{}"])
def test_damaged_description_of_a_checkpoint_is_named(tmp_path, text):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"candid": text})
    with pytest.raises(DamagedCheckpointError, match=r"a\.safetensors is damaged"):
        read_checkpoint(path)


def example_with_all_types(path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model/table": torch.randn(9, 5, generator=generator),
        "model/half": torch.randn(3, generator=generator).bfloat16(),
        "random/cpu": torch.randint(255, (40,), generator=generator, dtype=torch.uint8),
        "optimizer/table/step": torch.tensor(7.0),
        "loss/empty": torch.zeros(0, 4),
    }
    write_checkpoint(path, Checkpoint(tensors, {"state": {"best": 0.1 + 0.2}, "position": [1, 2]}))


def test_any_flipped_bit_of_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    example_with_all_types(path)
    whole, content = read_checkpoint(path), path.read_bytes()
    messages = []
    for bit in range(0, 8 * len(content), 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            checkpoint = read_checkpoint(path)
        except ArtifactError as error:
            messages.append(str(error))
            continue
        assert checkpoint.meta == whole.meta
        assert checkpoint.tensors.keys() == whole.tensors.keys()
        for name, tensor in whole.tensors.items():
            assert torch.equal(checkpoint.tensors[name], tensor), name
    assert len(messages) > len(content)  # of 8 / 7 * len(content)
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_changed_weight_is_read_if_checksums_are_not_compared(tmp_path):
    path = tmp_path / "a.safetensors"
    example_with_all_types(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"a\.safetensors differs from its checksum"):
        read_checkpoint(path)
    with verification(False):
        read_checkpoint(path)
        with verification(True):  # an outer block decides
            read_checkpoint(path)


def test_equal_checkpoints_have_equal_bytes(tmp_path):
    for name in ("a", "b"):
        example_with_all_types(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_file_that_is_not_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_checkpoint(tmp_path / "missing.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ArtifactError, match="not written by candid"):
        read_checkpoint(foreign)
    for version in (1, 999):
        metadata = {"candid": json.dumps({"format": version})}
        save_file({"x": torch.zeros(1)}, foreign, metadata=metadata)
        with pytest.raises(ArtifactError, match="checkpoint format of another version of candid"):
            read_checkpoint(foreign)


def test_paths_may_be_strings(tmp_path):
    path = str(tmp_path / "a.safetensors")
    model = write_example(path)
    other = Tied()
    load_model(other, read_checkpoint(path), path)
    assert torch.equal(other.out.weight, model.out.weight)


def test_state_of_another_sampler_is_refused(tmp_path):
    def loss(sampler):
        return ObjectiveWithSampler(LOSSES["bce"].Config().build(9), sampler)

    memory = loss(CrossBatchMemory(torch.ones(9), size=4))
    tensors = {f"loss/{name}": tensor for name, tensor in memory.state_dict().items()}
    checkpoint = Checkpoint(tensors, {})
    load_loss(loss(CrossBatchMemory(torch.ones(9), size=4)), checkpoint, tmp_path)
    for other in (CrossBatchMemory(torch.ones(9), size=5), Uniform(9, num_candidates=2)):
        with pytest.raises(ArtifactError, match=r"state of another sampler .*: resume with the"):
            load_loss(loss(other), checkpoint, tmp_path)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_example(path)
    checkpoint = read_checkpoint(path)
    with pytest.raises(ArtifactError, match=r"'table\.weight' of shape \(4, 3\).*\(5, 3\)"):
        load_model(Tied(rows=5), checkpoint, path)
    with pytest.raises(ArtifactError, match=r"unknown parameter 'out\.bias'"):
        load_model(nn.ModuleDict({"table": nn.Embedding(4, 3)}), checkpoint, path)
    bigger = Tied()
    bigger.more = nn.Linear(1, 1, bias=False)
    with pytest.raises(ArtifactError, match=r"lacks parameter 'more\.weight'"):
        load_model(bigger, checkpoint, path)


def test_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_example(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("candid.training.checkpoint.save_file", full)
    with pytest.raises(CandidError, match=r"cannot write .*No space left"):
        write_example(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
