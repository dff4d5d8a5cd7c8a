"""The running mean against its written-out recursion."""

import math

import pytest
import torch
from torch import nn

from candid.training import Checkpoint
from candid.training.average import WeightAverage
from candid.training.mean_decay import MeanDecay
from candid.training.row_optimizer import RowAdagrad


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
    other.load(Checkpoint(tensors, {}), 5)
    for name, mean in other.tensors().items():
        assert torch.equal(mean, tensors[name])


def test_checkpoint_without_a_mean_starts_from_the_weights():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    walk(model, average, 5)
    average.load(Checkpoint({}, {}), 5)
    assert torch.equal(average.tensors()["average/weight"], model.weight)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_share_kept_by_many_steps_is_the_product_of_each(decay):
    mean_decay = MeanDecay(decay)
    for step in (0, 1, 7, 80, 82, 200):
        since = torch.arange(step + 1)
        expected = [
            math.prod(mean_decay.at(t) for t in range(start + 1, step + 1)) for start in since
        ]
        torch.testing.assert_close(
            mean_decay.kept(since, step), torch.tensor(expected, dtype=torch.float64)
        )


def row_walk(model, rows, average, *, start, steps, seed=0):
    """Train a table by random rows; return its weights after each step."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for step in range(1, start + steps + 1):
        ids = torch.randint(len(model.weight), (3,), generator=generator)
        scale = torch.randn(3, 1, generator=generator)
        if step > start:
            rows.zero_grad()
            (model(ids) * scale).sum().backward()
            rows.step()
            average.update(step)
            weights.append(model.weight.detach().float().clone())
    return weights


def row_model(dtype=torch.float32, decay=0.9):
    torch.manual_seed(0)
    model = nn.Embedding(12, 4, sparse=True, dtype=dtype)
    rows = RowAdagrad(model.parameters(), lr=0.3)
    return model, rows, WeightAverage(model, decay=decay, rows=rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_mean_of_rows_is_that_of_the_whole_table(dtype, decay):
    model, rows, average = row_model(dtype, decay)
    expected = model.weight.detach().to(torch.float64)
    for step, weights in enumerate(row_walk(model, rows, average, start=0, steps=150), 1):
        kept = min(decay, step / (step + 9))
        expected = kept * expected + (1 - kept) * weights
    last = model.weight.detach().clone()
    with average.in_place():
        assert model.weight.dtype == dtype
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype != torch.bfloat16 else {}
        torch.testing.assert_close(model.weight.detach(), expected.to(dtype), **tolerance)
        assert not torch.allclose(model.weight, last, atol=1e-3)
    assert torch.equal(model.weight, last)


def test_mean_of_rows_continues_from_a_checkpoint_to_the_last_bit():
    model, rows, average = row_model()
    row_walk(model, rows, average, start=0, steps=30)
    tensors = {name: value.clone() for name, value in average.tensors().items()}
    state = {key: value.clone() for key, value in rows.state[model.weight].items()}
    weights = model.weight.detach().clone()
    row_walk(model, rows, average, start=30, steps=30)

    other, other_rows, resumed = row_model()
    with torch.no_grad():
        other.weight.copy_(weights)
    other_rows.state[other.weight].update(state)
    resumed.load(Checkpoint(tensors, {}), 30)
    row_walk(other, other_rows, resumed, start=30, steps=30)
    for name, value in average.tensors().items():
        assert torch.equal(resumed.tensors()[name], value), name


def test_checkpoint_has_the_finished_mean_of_rows():
    model, rows, average = row_model()
    row_walk(model, rows, average, start=0, steps=30)
    stored = average.tensors() | {"model/weight": model.weight.detach()}
    checkpoint = Checkpoint(stored, average.meta() | {"state": {"step": 30}})
    with average.in_place():
        assert torch.equal(checkpoint.average()["weight"], model.weight)
    assert not torch.equal(checkpoint.part("average")["weight"], checkpoint.average()["weight"])
