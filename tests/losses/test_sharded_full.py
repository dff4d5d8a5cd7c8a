"""The full softmax over the items of several processes against that of one."""

import pytest
import torch

from candid.distributed import current_group
from candid.distributed.exchange import RowRanges
from candid.errors import ConfigError, DataError
from candid.losses import full_softmax, sharded_full_softmax

B, V, D = 7, 10, 4


def inputs(num_items=V):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(B, D, generator=generator, dtype=torch.float64) * 3
    items = torch.randn(num_items, D, generator=generator, dtype=torch.float64)
    positives = torch.randint(0, num_items, (B,), generator=generator)
    weights = torch.rand(B, generator=generator, dtype=torch.float64)
    return query, items, positives, weights


def check_equal(rank, num_ranks, num_items):
    query, items, positives, weights = inputs(num_items)
    query.requires_grad_()
    items.requires_grad_()
    whole = full_softmax(query, items, positives, effective_sample_size=True)
    (whole.loss * weights).sum().backward()
    # The second process has no rows; with more processes than items one has no item.
    stops = {1: [0, B], 2: [0, B, B], 3: [0, 2, 2, B]}[num_ranks]
    rows = slice(stops[rank], stops[rank + 1])
    own = RowRanges(num_items, num_ranks).of(rank)
    own_query = query.detach()[rows].requires_grad_()
    own_vectors = items.detach()[own.start : own.stop].requires_grad_()
    output = sharded_full_softmax(
        own_query, own_vectors, positives[rows], own_items=own, num_items=num_items,
        effective_sample_size=True,
    )  # fmt: skip
    for name in ("loss", "log_z", "sample_weight", "effective_sample_size"):
        expected = getattr(whole, name)[rows].detach()
        torch.testing.assert_close(getattr(output, name).detach(), expected, rtol=0, atol=1e-12)
    (output.loss * weights[rows]).sum().backward()
    expected = items.grad[own.start : own.stop]
    torch.testing.assert_close(own_query.grad, query.grad[rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(own_vectors.grad, expected, rtol=0, atol=1e-12)


def all_cases(rank, num_ranks):
    for num_items in (V, 2, 1):
        check_equal(rank, num_ranks, num_items)
    group = current_group()
    group.traffic.clear()
    query, items, positives, _ = inputs()
    own = RowRanges(V, num_ranks).of(rank)
    own_vectors = items[own.start : own.stop]
    # Values without gradient, and narrow products.
    output = sharded_full_softmax(
        query.float(), own_vectors.float(), positives, own_items=own, num_items=V,
        precision="bfloat16",
    )  # fmt: skip
    expected = full_softmax(query, items, positives)
    torch.testing.assert_close(output.loss.double(), expected.loss, rtol=0.05, atol=0.05)
    bad = torch.where(torch.tensor(rank == num_ranks - 1), V, positives)
    with pytest.raises(DataError, match=f"positive id {V} is outside the catalog"):
        sharded_full_softmax(query, own_vectors, bad, own_items=own, num_items=V)
    return True


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_loss_and_gradient_equal_those_of_one_process(on_ranks, num_ranks):
    assert all(on_ranks(all_cases, num_ranks))


def test_vectors_of_other_items_than_the_own_ones_are_refused():
    query, items, positives, _ = inputs()
    with pytest.raises(ConfigError, match="own_embeddings has 10 rows for 3 items"):
        sharded_full_softmax(query, items, positives, own_items=range(3), num_items=V)
