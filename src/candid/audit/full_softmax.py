"""The full softmax of the audited rows: the reference of every estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from candid.audit.audit_input import AuditInput

BLOCK_SCORES = 1 << 22
"""Number of scores in memory at a time: 32 MiB in float64."""


@dataclass(frozen=True, slots=True)
class FullSoftmaxReference:
    """Loss and gradient of the full softmax with respect to the logits of Q rows.

    The gradient of a row is P(d) for every other item d and P(p) - 1 for the positive p; it is
    never stored as a whole.

    Attributes:
        nll: [Q] float64, -log P(p).
        log_partition: [Q] float64, log of the sum over all items, including the positive.
        sample_weight: [Q] float64, 1 - P(p).
        squared_norm: [Q] float64, squared length of the gradient.
    """

    nll: Tensor
    log_partition: Tensor
    sample_weight: Tensor
    squared_norm: Tensor


def compute_full_softmax(data: AuditInput) -> FullSoftmaxReference:
    """Compute the full softmax in blocks over the catalog, in float64."""
    query = data.query.double()
    positive = (query * data.item_vectors[data.positive_ids].double()).sum(dim=1)
    log_sum = torch.full_like(positive, -torch.inf)
    log_squares = log_sum.clone()
    size = max(1, BLOCK_SCORES // len(query))
    for begin in range(0, data.num_items, size):
        block = data.item_vectors[begin : begin + size].double()
        scores = query @ block.T
        ids = torch.arange(begin, begin + len(block))
        scores.masked_fill_(ids == data.positive_ids[:, None], -torch.inf)
        log_sum = torch.logaddexp(log_sum, scores.logsumexp(dim=1))
        log_squares = torch.logaddexp(log_squares, (2.0 * scores).logsumexp(dim=1))
    gap = log_sum - positive
    log_partition = torch.logaddexp(log_sum, positive)
    sample_weight = torch.sigmoid(gap)
    return FullSoftmaxReference(
        nll=torch.logaddexp(gap, torch.zeros_like(gap)),
        log_partition=log_partition,
        sample_weight=sample_weight,
        squared_norm=sample_weight.square() + torch.exp(log_squares - 2.0 * log_partition),
    )
