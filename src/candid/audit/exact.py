"""The full softmax of the audited rows: what every estimate is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from candid.audit.subject import Subject

BLOCK_SCORES = 1 << 22
"""Scores held at a time: 32 MiB in float64."""


@dataclass(frozen=True, slots=True)
class ExactSoftmax:
    """Loss and gradient of the full softmax with respect to the logits of Q rows.

    The gradient of a row is P(d) for every other item d and P(p) - 1 for the positive p; it is
    never held whole.

    Attributes:
        nll: [Q] float64, -log P(p).
        log_partition: [Q] float64, log of the sum over all items, the positive too.
        weight: [Q] float64, 1 - P(p).
        square: [Q] float64, squared length of the gradient.
    """

    nll: Tensor
    log_partition: Tensor
    weight: Tensor
    square: Tensor


def exact_softmax(subject: Subject) -> ExactSoftmax:
    """Work out the full softmax blockwise over the catalog, in float64."""
    query = subject.query.double()
    positive = (query * subject.item_vectors[subject.positive_ids].double()).sum(dim=1)
    log_sum = torch.full_like(positive, -torch.inf)
    log_squares = log_sum.clone()
    size = max(1, BLOCK_SCORES // len(query))
    for begin in range(0, subject.num_items, size):
        block = subject.item_vectors[begin : begin + size].double()
        scores = query @ block.T
        ids = torch.arange(begin, begin + len(block))
        scores.masked_fill_(ids == subject.positive_ids[:, None], -torch.inf)
        log_sum = torch.logaddexp(log_sum, scores.logsumexp(dim=1))
        log_squares = torch.logaddexp(log_squares, (2.0 * scores).logsumexp(dim=1))
    gap = log_sum - positive
    log_partition = torch.logaddexp(log_sum, positive)
    weight = torch.sigmoid(gap)
    return ExactSoftmax(
        nll=torch.logaddexp(gap, torch.zeros_like(gap)),
        log_partition=log_partition,
        weight=weight,
        square=weight.square() + torch.exp(log_squares - 2.0 * log_partition),
    )
