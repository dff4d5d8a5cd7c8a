import torch

from candid.audit import Estimator, sampler_config
from candid.audit.audit_sampler import AuditSampler
from candid.audit.cost import PeakMemory, full_softmax_cost, sampled_cost

from .conftest import tiny_input


def test_peak_memory_counts_live_tensors():
    with PeakMemory() as memory:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        second = first + 1.0
        del first, view
        third = second * 2.0
        second.add_(third)
    assert memory.peak == 8000


def test_peak_memory_includes_the_backward_pass():
    x = torch.ones(1000, requires_grad=True)
    with PeakMemory() as memory:
        x.exp().sum().backward()
    # exp is saved for the backward pass; its product with the gradient is a second vector.
    assert 8000 <= memory.peak <= 12100


def test_cost_grows_with_the_candidates(tiny):
    def cost(n, jackknife=False):
        config = sampler_config({"type": "uniform", "num_candidates": n})
        generator = torch.Generator().manual_seed(0)
        sampler = AuditSampler(config, tiny, batch_rows=n, generator=generator)
        return sampled_cost(
            tiny, sampler, Estimator("refined", jackknife=jackknife), 100, seconds=0
        )

    few, many = cost(10), cost(1000)
    assert few.ms > 0
    # Scores [100, 1000] in float32 are 0.4 MB.
    assert few.mb < 0.4 < many.mb
    assert cost(1000, jackknife=True).mb > many.mb
    assert full_softmax_cost(tiny, 100, seconds=0).ms > 0


def test_full_softmax_cost_leaves_no_gradient(tiny):
    full_softmax_cost(tiny, 5, seconds=0)
    assert tiny.item_vectors.grad is None
    assert not tiny_input().query.requires_grad
    assert not tiny.query.requires_grad
