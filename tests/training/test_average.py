"""The running mean against its written-out recursion."""

import pytest
import torch
from torch import nn

from candid.training import Checkpoint
from candid.training.average import WeightAverage


def walk(model, average, steps, start=1):
    """Take random steps and return the mean by its definition."""
    generator = torch.Generator().manual_seed(start)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(start, start + steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        average.update(step)
        decay = min(0.9, step / (step + 9))
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    return expected


def test_mean_follows_its_recursion_and_is_swapped_into_the_model():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    expected = walk(model, average, 100)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with average.in_place():
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name])
        assert not torch.allclose(own[name], expected[name])


def test_weights_are_restored_after_an_error():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    walk(model, average, 3)
    own = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), average.in_place():
        raise RuntimeError("inside")
    assert torch.equal(model.weight, own)


def test_checkpoint_has_the_mean():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    walk(model, average, 5)
    tensors = {name: mean.clone() for name, mean in average.tensors().items()}
    other = WeightAverage(nn.Linear(3, 2), decay=0.9)
    other.load(Checkpoint(tensors, {}))
    for name, mean in other.tensors().items():
        assert torch.equal(mean, tensors[name])


def test_checkpoint_without_a_mean_starts_from_the_weights():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    walk(model, average, 5)
    average.load(Checkpoint({}, {}))
    assert torch.equal(average.tensors()["average/weight"], model.weight)
