"""The log partition function in blocks against a dense float64 logsumexp."""

from __future__ import annotations

import pytest
import torch

from candid.inference import log_partition


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
    log_z = log_partition(query, items, block_items=block_items)
    assert log_z.dtype == torch.float64
    torch.testing.assert_close(log_z, expected, atol=2e-6, rtol=0)


def test_log_partition_of_logits_beyond_the_range_of_exp():
    query, items = vectors(scale=300.0)
    expected = torch.logsumexp(query.double() @ items.double().T, 1)
    assert expected.max() > 1000
    torch.testing.assert_close(
        log_partition(query, items, block_items=50), expected, atol=0, rtol=1e-6
    )


def test_log_partition_does_not_change_its_arguments():
    query, items = vectors()
    before = query.clone(), items.clone()
    log_partition(query, items, block_items=50)
    assert torch.equal(query, before[0])
    assert torch.equal(items, before[1])
