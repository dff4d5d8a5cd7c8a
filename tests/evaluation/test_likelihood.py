"""Log-likelihood in blocks against a dense float64 log-softmax."""

from __future__ import annotations

import pytest
import torch

from candid.evaluation.likelihood import log_partition, target_nll


def vectors(num_items=301, num_rows=9, dim=16, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return (
        scale * torch.randn(num_rows, dim, generator=generator),
        torch.randn(num_items, dim, generator=generator),
    )


@pytest.mark.parametrize("block_items", [1, 7, 300, 301, 5000])
def test_log_partition_agrees_with_dense_float64(block_items):
    query, items = vectors()
    expected = torch.logsumexp(query.double() @ items.double().T, 1)
    found = log_partition(query, items, block_items)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_logits_far_beyond_the_range_of_exp():
    query, items = vectors(scale=300.0)
    expected = torch.logsumexp(query.double() @ items.double().T, 1)
    assert expected.max() > 1000
    torch.testing.assert_close(log_partition(query, items, 50), expected, atol=0, rtol=1e-6)


def test_target_nll_agrees_with_dense_float64():
    query, items = vectors()
    rows = torch.tensor([0, 0, 3, 8])
    ids = torch.tensor([5, 300, 5, 0])
    dense = torch.log_softmax(query.double() @ items.double().T, 1)
    torch.testing.assert_close(
        target_nll(query, items, rows, ids), -dense[rows, ids], atol=2e-6, rtol=0
    )


def test_arguments_are_left_alone():
    query, items = vectors()
    before = query.clone(), items.clone()
    log_partition(query, items, 50)
    assert torch.equal(query, before[0])
    assert torch.equal(items, before[1])
