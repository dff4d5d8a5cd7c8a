"""Kernel samplers with samples for each row: the estimate of Z' is unbiased."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.losses import full_softmax, sampled_softmax
from candid.samplers import Quadratic, RandomFourier, sample_groups

MAKERS = {
    "random_fourier": lambda v, n, block: RandomFourier(
        v, num_candidates=n, nu=3.0, num_features=6, block_size=block
    ),
    "quadratic": lambda v, n, block: Quadratic(v, num_candidates=n, scale=5.0, block_size=block),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    num_items=st.integers(2, 30),
    block_size=st.integers(1, 6),
    repeated=st.booleans(),
    length=st.floats(0.1, 3.0),
    is_stale=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_estimate_of_z_is_unbiased(make, num_items, block_size, repeated, length, is_stale, seed):
    """Any catalog, repeated item vectors, vectors that changed after the refresh."""
    generator = torch.Generator().manual_seed(seed)
    items = length * torch.randn(num_items, 4, generator=generator)
    if repeated:
        items[1:] = items[:-1].clone()
    query = torch.randn(1, 4, generator=generator)
    trials = 3000
    sampler = make(num_items, 8, block_size)
    old_items = items + torch.randn(items.shape, generator=generator) if is_stale else items
    sampler.refresh(old_items)
    positive = int(torch.randint(num_items, (1,), generator=generator))
    positive_ids = torch.full((trials,), positive)
    queries = query.expand(trials, -1)
    candidates = sample_groups(sampler, 4, positive_ids, query=queries, generator=generator)
    assert candidates.ids.shape == (trials, 8)
    out = sampled_softmax(queries, items, positive_ids, candidates, correction="refined")
    # Samples are renormalized over those that are valid; a row without any has no estimate.
    z = out.log_z[~(candidates.ids == positive).all(dim=1)].double().exp()
    if len(z) < 100:
        return
    scores = (items.double() @ query[0].double()).exp()
    exact = float(scores.sum() - scores[positive])
    error = 5 * float(z.std()) / math.sqrt(len(z)) + 1e-4 * exact
    assert float(z.mean()) == pytest.approx(exact, abs=error)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_many_samples_approach_the_full_softmax(make):
    generator = torch.Generator().manual_seed(1)
    items = torch.randn(12, 4, generator=generator)
    query = torch.randn(5, 4, generator=generator).requires_grad_()
    positive_ids = torch.tensor([0, 3, 3, 11, 7])
    sampler = make(12, 40_000, 2)
    sampler.refresh(items)
    candidates = sampler.sample(positive_ids, query=query.detach(), generator=generator)
    sampled = sampled_softmax(query, items, positive_ids, candidates, correction="refined")
    exact = full_softmax(query, items, positive_ids)
    torch.testing.assert_close(sampled.loss, exact.loss, rtol=0.05, atol=0.01)
    grad, expected = (torch.autograd.grad(out.loss.sum(), query)[0] for out in (sampled, exact))
    torch.testing.assert_close(grad, expected, rtol=0.05, atol=0.02)
