"""Full-softmax log-likelihood over the catalog, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def log_partition(query: Tensor, item_vectors: Tensor, block_items: int = 16384) -> Tensor:
    """Log of the softmax's partition function, log Σ_d exp(q · v_d), over all items.

    The running maximum of a row is subtracted before ``exp``; sums are float64.

    Args:
        query: [B, D] float32.
        item_vectors: [V, D] float32.
        block_items: items scored at once; [B, block_items] is the largest temporary.

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


def target_nll(
    query: Tensor, item_vectors: Tensor, target_rows: Tensor, target_ids: Tensor
) -> Tensor:
    """Negative log-likelihood of targets under the softmax over the whole catalog.

    Nothing is filtered: seen items stay in the denominator, as they do in training.

    Args:
        query: [B, D] float32.
        item_vectors: [V, D] float32.
        target_rows: [M] int64, the query of each target.
        target_ids: [M] int64.

    Returns:
        [M] float64, in nats.
    """
    logits = (query[target_rows].double() * item_vectors[target_ids].double()).sum(1)
    return log_partition(query, item_vectors)[target_rows] - logits
