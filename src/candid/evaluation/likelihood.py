"""Negative log-likelihood of targets under the full softmax."""

from __future__ import annotations

from torch import Tensor


def target_nll(
    query: Tensor,
    item_vectors: Tensor,
    target_rows: Tensor,
    target_ids: Tensor,
    log_z: Tensor,
) -> Tensor:
    """Compute the negative log-likelihood of targets under the softmax over all items.

    No item is filtered: seen items stay in the denominator, as they do in training.

    Args:
        query: [B, D] float32.
        item_vectors: [V, D] float32.
        target_rows: [M] int64, the row of ``query`` of each target.
        target_ids: [M] int64, the row of ``item_vectors`` of each target.
        log_z: [B] float64, the log partition of each query over all items.

    Returns:
        [M] float64, in nats.
    """
    logits = (query[target_rows].double() * item_vectors[target_ids].double()).sum(1)
    return log_z[target_rows] - logits
