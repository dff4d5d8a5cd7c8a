"""The softmax of a positive against candidates, forward and back, without the [B, N] scores.

Scores are made tile by tile (rows × candidates) in scratch memory that stays in the caches, and
each tile is turned into exponentials in place. What the tiles say of a row is joined by their
log-sums, a factor for each row and tile, so that no tile is touched again to be renormalised.

Gradients need the shares once more. Where all the tiles of a block of rows fit into a few
megabytes, they are kept until the row's sum is known and spent at once, for a gradient of 1 on
every row's loss; the backward pass of a mean or a sum over the rows only scales the result: three
matrix products in all. Otherwise the tiles are made again in the backward pass: four.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.losses.blockwise.accidental_hits import AccidentalHits
from candid.losses.blockwise.tiles import Gradients, Precision, Tiles


@dataclass(frozen=True)
class Others:
    """What a row is compared with, but for the vectors.

    Attributes:
        hits: which candidates are no negatives of which rows.
        shift: [N], subtracted from the candidates' scores (log expected counts), of the dtype of
            the query; inf leaves a candidate out. None for 0.
        row_shift: [B], subtracted from all the candidates of a row; or None.
        precision: of the matrix products.
    """

    accidental_hits: AccidentalHits
    shift: Tensor | None = None
    row_shift: Tensor | None = None
    precision: Precision = "float32"


def blockwise_softmax(
    query: Tensor,
    vectors: Tensor,
    positive: Tensor,
    others: Others,
    log_rest: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the positives, and log Z' of all else.

    log Z' = logaddexp(log_rest, logsumexp over candidates of [ score - shift ] - row_shift)
    loss   = logaddexp(positive, log Z') - positive

    Args:
        query: [B, D] float32 or float64.
        vectors: [N, D] of the candidates, of the same dtype.
        positive: [B], the positives' scores, of the same dtype; or, where the positives are among
            the candidates, [B] int64, the candidate that each is (to be excluded by ``others``).
        others: see there.
        log_rest: [B], the log of what else the row is compared with; None for nothing.

    Returns:
        loss and log_z, [B] each, of the same dtype, both differentiable once in query, vectors,
        scores of the positives and ``log_rest``. A row without candidates has log_z -inf, loss
        0 and gradient 0.
    """
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _BlockwiseSoftmax.apply)
    return apply(query, vectors, positive, log_rest, others)


def _as_told(device: str) -> AbstractContextManager[object]:
    """Matrix products as ``Others.precision`` has it, also inside of autocast."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


class _BlockwiseSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        vectors: Tensor,
        positive: Tensor,
        log_rest: Tensor | None,
        others: Others,
    ) -> tuple[Tensor, Tensor]:
        is_index = not positive.is_floating_point()
        scores = (query * vectors[positive]).sum(dim=1) if is_index else positive
        log_z, unit = _summed(query, vectors, scores, log_rest, others, ctx.needs_input_grad)
        gap = log_z - scores
        weight = torch.sigmoid(gap)
        if unit is not None and is_index:
            unit.pull(positive, weight)
        ctx.save_for_backward(query, vectors, positive, log_rest, log_z, weight)
        # Not the tiles, whose memory the next loss can use.
        ctx.others, ctx.unit = others, None if unit is None else (unit.query, unit.vectors)
        ctx.set_materialize_grads(False)
        return torch.logaddexp(torch.zeros_like(gap), gap), log_z

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_log_z: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grads = _gradients(ctx, grad_loss, grad_log_z)
        if torch.is_grad_enabled():
            leaves = [leaf for leaf in ctx.saved_tensors[:4] if leaf is not None]
            last = cast(Callable[..., Tensor], _Last.apply)
            grads = [None if grad is None else last(grad, *leaves) for grad in grads]
        return *grads, None


class _Last(torch.autograd.Function):
    """A gradient that has none itself: without this it would pass for a constant."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *leaves: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise ConfigError(
            "a softmax that is computed in tiles has no second derivative: score the candidates "
            "yourself and use candid.losses.corrected_log_softmax"
        )


@torch.no_grad()
def _gradients(
    ctx: Any, grad_loss: Tensor | None, grad_log_z: Tensor | None
) -> list[Tensor | None]:
    """Of query, vectors, positive and log_rest."""
    query, vectors, positive, log_rest, log_z, weight = ctx.saved_tensors
    of_query, of_vectors, of_positive, of_rest, _ = ctx.needs_input_grad
    others: Others = ctx.others
    zero = torch.zeros_like(weight)
    pull = zero if grad_loss is None else weight * grad_loss
    push = pull if grad_log_z is None else pull + grad_log_z
    grad_positive = -pull if of_positive else None
    grad_rest = push * _share(log_rest, _EVERY, None, log_z) if of_rest else None
    grad_query = grad_vectors = None
    # Scaled in place and given away, for a copy would be as large as the catalog; a second
    # backward through a retained graph finds none and makes the tiles again.
    unit, ctx.unit = ctx.unit, None
    if unit is not None and grad_log_z is None and grad_loss is not None:
        # A row's own gradient is scaled by what arrives at the row; that of a candidate is
        # a sum over the rows, and only a common factor can be taken out.
        if of_query:
            grad_query, of_query = unit[0] * grad_loss[:, None], False
        if of_vectors and _is_uniform(grad_loss):
            grad_vectors, of_vectors = unit[1].mul_(grad_loss[0]), False
    if of_query or of_vectors:
        found = _made_again(query, vectors, push, log_z, others, (of_query, of_vectors))
        if not positive.is_floating_point():
            found.pull(positive, pull)
        grad_query = found.query if of_query else grad_query
        grad_vectors = found.vectors if of_vectors else grad_vectors
    return [grad_query, grad_vectors, grad_positive, grad_rest]


_EVERY = slice(None)


def _summed(
    query: Tensor,
    vectors: Tensor,
    scores: Tensor,
    log_rest: Tensor | None,
    others: Others,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Gradients | None]:
    """Log Z' [B], and where tiles can be kept the gradients for 1 on every loss."""
    tiles = Tiles(query, vectors, others.shift, others.precision)
    of_query, of_vectors = needs_grad[:2]
    unit = None
    is_spent = tiles.keeps and (of_query or of_vectors)
    tiles.reserve(keep=is_spent)
    if is_spent:
        unit = Gradients(tiles, of_query=of_query, of_vectors=of_vectors)
    log_z = torch.empty_like(scores)
    with _as_told(query.device.type):
        for rows in tiles.row_blocks:
            accidental_hits = others.accidental_hits.of_rows(rows, tiles.column_blocks)
            kept = tiles.passes(rows, accidental_hits, keep=unit is not None)
            log_z[rows] = _log_z([done.log_sum for done in kept], rows, others, log_rest, log_z)
            if unit is not None and kept:
                weight = torch.sigmoid(log_z[rows] - scores[rows])
                references = torch.stack([done.reference for done in kept])
                unit.add(kept, weight * _share(references, rows, others, log_z))
    return log_z, unit


def _made_again(
    query: Tensor,
    vectors: Tensor,
    push: Tensor,
    log_z: Tensor,
    others: Others,
    wanted: tuple[bool, bool],
) -> Gradients:
    """Gradients for ``push`` [B] on log Z'."""
    tiles = Tiles(query, vectors, others.shift, others.precision)
    tiles.reserve(keep=False)
    found = Gradients(tiles, of_query=wanted[0], of_vectors=wanted[1])
    with _as_told(query.device.type):
        for rows in tiles.row_blocks:
            accidental_hits = others.accidental_hits.of_rows(rows, tiles.column_blocks)
            # In the order of ``Gradients.add``, so that both give the same bits.
            for block in reversed(range(len(tiles.column_blocks))):
                done = tiles.passed(rows, block, accidental_hits, keep=0)
                share = _share(done.reference, rows, others, log_z)
                found.add([done], (push[rows] * share)[None])
    return found


def _log_z(
    log_sums: list[Tensor], rows: slice, others: Others, log_rest: Tensor | None, like: Tensor
) -> Tensor:
    """Log Z' [rows] from the log-sums [rows] of the tiles of a block of rows."""
    if log_sums:
        log_z = torch.stack(log_sums).logsumexp(dim=0)
    else:
        log_z = torch.full_like(like[rows], -math.inf)
    if others.row_shift is not None:
        log_z = log_z - others.row_shift[rows]
    return log_z if log_rest is None else torch.logaddexp(log_rest[rows], log_z)


def _share(log_part: Tensor, rows: slice, others: Others | None, log_z: Tensor) -> Tensor:
    """Exp(log_part - log Z') [rows], 0 where Z' is 0; log_part less the row's shift."""
    log_z = log_z[rows]
    log_share = log_part - log_z
    if others is not None and others.row_shift is not None:
        log_share = log_share - others.row_shift[rows]
    return torch.exp(log_share).masked_fill(log_z.isneginf(), 0.0)


def _is_uniform(grad: Tensor) -> bool:
    """Whether all rows have one gradient, as far as it is known without synchronising."""
    if len(grad) == 0:
        return False
    if grad.stride(0) == 0 or len(grad) == 1:
        return True
    return grad.device.type == "cpu" and bool((grad == grad[0]).all())
