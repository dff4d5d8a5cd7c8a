"""The measuring core: many draws, their gradients summed, never a [Q, V] matrix for each.

A draw's gradient with respect to the logits is sparse: it touches the candidates, the head and
the positive. The gradients of K independent groups of draws are summed into [K, B, V] for a
block of rows small enough to hold that, and everything that is reported is an inner product of
those sums with each other and with the exact gradient (see ``moments``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from candid.audit.estimators import Variant
from candid.audit.exact import ExactSoftmax
from candid.audit.moments import GROUPS, Finding, Moments, error_of_root, joined
from candid.audit.sampler import Rows, Sampler, head_ids, part_of
from candid.audit.subject import Subject
from candid.losses.comparison import Comparison, compare

BATCH_ROWS = 64
"""Audited rows that share a draw."""
SUM_BYTES = 1 << 28
"""Memory for the sums of gradients."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to go on.

    Attributes:
        accuracy: largest standard error of a relative bias; draws are added until every
            variant's is below it.
        max_draws: draws of a block of rows at most.
        draws: so many, whatever the error; None: as many as the accuracy needs.
    """

    accuracy: float = 0.005
    max_draws: int = 2048
    draws: int | None = None


def measure(
    subject: Subject,
    exact: ExactSoftmax,
    sampler: Sampler,
    variants: Sequence[Variant],
    effort: Effort,
) -> list[Moments]:
    """Draw for every row of a subject and compare with the full softmax.

    Args:
        subject: what is audited.
        exact: its full softmax.
        sampler: where candidates come from.
        variants: corrections, all measured on the same draws.
        effort: how long to go on.

    Returns:
        the moments of each variant.
    """
    row_bytes = 8 * GROUPS * len(variants) * subject.num_items
    size = min(BATCH_ROWS, max(1, SUM_BYTES // row_bytes))
    num_rows = len(subject.query)
    batches = [slice(b, min(b + BATCH_ROWS, num_rows)) for b in range(0, num_rows, BATCH_ROWS)]
    blocks = [
        (batch, slice(begin, min(begin + size, batch.stop)))
        for batch in batches
        for begin in range(batch.start, batch.stop, size)
    ]
    parts = [
        _measured_block(subject, exact, sampler, variants, effort, batch, block, len(blocks))
        for batch, block in blocks
    ]
    return [joined(of_variant) for of_variant in zip(*parts, strict=True)]


def _measured_block(
    subject: Subject,
    exact: ExactSoftmax,
    sampler: Sampler,
    variants: Sequence[Variant],
    effort: Effort,
    batch: slice,
    block: slice,
    num_blocks: int,
) -> list[Moments]:
    """Measure the rows ``block``, which stand in ``batch``, until they are known well enough."""
    rows = Rows.of(subject, batch)
    inside = slice(block.start - batch.start, block.stop - batch.start)
    sums = [_Sums(subject, exact, block, variant) for variant in variants]
    query = subject.query[block].double()
    draws, target = 0, 2 * GROUPS if effort.draws is None else max(effort.draws, 2 * GROUPS)
    while True:
        for draw in range(draws, target):
            candidates = part_of(sampler.draw(rows), inside)
            comparison = compare(
                query,
                lambda ids: subject.item_vectors[ids].double(),
                subject.positive_ids[block],
                candidates,
            )
            for of_variant in sums:
                of_variant.add(draw % GROUPS, comparison)
        draws = target
        found = [of_variant.moments(draws) for of_variant in sums]
        enough = effort.draws is not None or draws >= effort.max_draws
        if enough or all(_is_known(one.find(), effort.accuracy, num_blocks) for one in found):
            return found
        target = min(2 * draws, effort.max_draws)


def _is_known(found: Finding, accuracy: float, num_blocks: int) -> bool:
    """Whether the pooled error will be small enough if every block is as uncertain as this."""
    floor = max(found.bias, 0.0) ** 2
    error = (found.bias_error + math.sqrt(floor)) ** 2 - floor
    return error_of_root(floor, error / math.sqrt(num_blocks)) <= accuracy


class _Sums:
    """Sums over the draws of a block of rows, for one variant, by group."""

    def __init__(
        self, subject: Subject, exact: ExactSoftmax, block: slice, variant: Variant
    ) -> None:
        self._variant = variant
        self._positive_ids = subject.positive_ids[block]
        self._nll = exact.nll[block]
        self._log_partition = exact.log_partition[block]
        self._weight = exact.weight[block]
        self._exact_square = exact.square[block]
        num_rows = len(self._positive_ids)
        self._gradient = torch.zeros(GROUPS, num_rows, subject.num_items, dtype=torch.float64)
        # Projection, square, gap and effective number, in this order.
        self._scalars = torch.zeros(4, GROUPS, num_rows, dtype=torch.float64)

    def add(self, group: int, comparison: Comparison) -> None:
        """Add the gradient of one draw."""
        leaves = [comparison.positive, comparison.candidates]
        if comparison.head is not None:
            leaves.append(comparison.head)
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        out = replace(
            comparison,
            positive=leaves[0],
            candidates=leaves[1],
            head=leaves[2] if len(leaves) > 2 else None,
        ).softmax(self._variant.correction, jackknife=self._variant.jackknife, effective=True)
        grads = torch.autograd.grad(out.loss.sum(), leaves)
        values = torch.cat([grads[0][:, None], *grads[1:]], dim=1)
        index = self._items(comparison)
        sums = self._gradient[group]
        before = sums.gather(1, index)
        sums.scatter_add_(1, index, values)
        # What an item gained in all: candidates may repeat.
        gained = sums.gather(1, index) - before
        assert out.effective_candidates is not None
        scores = torch.cat([leaf.detach() for leaf in leaves[1:]], dim=1)
        others = torch.exp(scores - self._log_partition[:, None])
        exact = torch.cat([-self._weight[:, None], others], dim=1)
        self._scalars[0, group] += (values * exact).sum(dim=1)
        self._scalars[1, group] += (values * gained).sum(dim=1)
        self._scalars[2, group] += out.loss.detach() - self._nll
        self._scalars[3, group] += out.effective_candidates

    def moments(self, draws: int) -> Moments:
        """Means over ``draws`` draws, dealt to the groups in turn."""
        counts = torch.tensor(
            [len(range(group, draws, GROUPS)) for group in range(GROUPS)], dtype=torch.float64
        )
        by_row = self._gradient.transpose(0, 1)
        gram = by_row @ by_row.mT / (counts[:, None] * counts)
        projection, square, gap, effective = (self._scalars / counts[:, None]).transpose(1, 2)
        return Moments(
            gram=gram,
            projection=projection,
            square=square,
            gap=gap,
            effective=effective,
            exact_square=self._exact_square,
            draws=torch.full_like(self._positive_ids, draws),
        )

    def _items(self, comparison: Comparison) -> Tensor:
        """[B, 1 + N + H], the item of each entry of a draw's gradient."""
        drawn, num_rows = comparison.drawn, len(self._positive_ids)
        ids = drawn.by_row(drawn.ids)
        parts = [self._positive_ids[:, None], ids.expand(num_rows, ids.shape[-1])]
        if drawn.head is not None:
            parts.append(head_ids(drawn.head, num_rows))
        return torch.cat(parts, dim=1)
