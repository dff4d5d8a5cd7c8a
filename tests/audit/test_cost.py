import torch

from candid.audit import Variant, sampler_config
from candid.audit.cost import PeakMemory, exact_cost, sampled_cost
from candid.audit.sampler import Sampler

from .conftest import tiny_subject


def test_the_peak_counts_what_lives_at_one_time():
    with PeakMemory() as memory:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        second = first + 1.0
        del first, view
        third = second * 2.0
        second.add_(third)
    assert memory.peak == 8000


def test_memory_of_the_backward_pass_counts():
    x = torch.ones(1000, requires_grad=True)
    with PeakMemory() as memory:
        x.exp().sum().backward()
    # exp is kept for the backward pass, whose product with the gradient is another vector.
    assert 8000 <= memory.peak <= 12100


def test_costs_are_positive_and_grow_with_the_candidates(tiny):
    def cost(n, jackknife=False):
        sampler = sampler_config({"type": "uniform", "num_candidates": n}).build(tiny.counts)
        sampler = Sampler(sampler, tiny, n, torch.Generator().manual_seed(0))
        return sampled_cost(tiny, sampler, Variant(jackknife=jackknife), 100, seconds=0)

    few, many = cost(10), cost(1000)
    assert few.ms > 0
    # Scores [100, 1000] in float32 are 0.4 MB.
    assert few.mb < 0.4 < many.mb
    assert cost(1000, jackknife=True).mb > many.mb
    assert exact_cost(tiny, 100, seconds=0).ms > 0


def test_measuring_leaves_no_gradient_behind(tiny):
    exact_cost(tiny, 5, seconds=0)
    assert tiny.item_vectors.grad is None
    assert not tiny_subject().query.requires_grad
    assert not tiny.query.requires_grad
