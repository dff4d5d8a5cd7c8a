"""The log partition function of the softmax over item vectors, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ITEMS = 16384
"""Items scored at once; [B, BLOCK_ITEMS] scores are the largest temporary."""


def log_partition(query: Tensor, item_vectors: Tensor, *, block_items: int = BLOCK_ITEMS) -> Tensor:
    """Compute log Σ_d exp(q · v_d) over all items.

    The running maximum of a row is subtracted before ``exp``; sums are float64.

    Args:
        query: [B, D] float32.
        item_vectors: [V, D] float32.
        block_items: items scored at once; [B, block_items] scores are the largest temporary.

    Returns:
        [B] float64.
    """
    total = torch.full((len(query),), -torch.inf, dtype=torch.float64, device=query.device)
    for begin in range(0, len(item_vectors), block_items):
        scores = query @ item_vectors[begin : begin + block_items].T
        largest = scores.amax(1, keepdim=True)
        mass = scores.sub_(largest).exp_().sum(1, dtype=torch.float64)
        total = torch.logaddexp(total, largest.squeeze(1).double() + mass.log())
    return total
