"""The softmax of a positive against candidates, forward and backward, without the [B, N] scores.

Scores are computed tile by tile (rows × candidates) in scratch memory that stays in the caches,
and each tile is turned into exponentials in place. The log-sums of a row's tiles are combined by a
factor for each row and tile, so that no tile is read again to be renormalized.

The gradient needs the exponentials once more. Where all tiles of a block of rows fit into a few
megabytes, they are cached until the row's sum is known. The forward pass then computes the
gradients for a gradient of 1 on every row's loss, and the backward pass of a mean or a sum over the
rows only scales them: three matrix products in all. Otherwise the backward pass recomputes the
tiles: four matrix products.

On CUDA devices Triton kernels do the same without scratch memory: see ``triton_softmax``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.losses.blockwise.accidental_hits import AccidentalHits
from candid.losses.blockwise.tiles import (
    Gradients,
    Precision,
    Tiles,
    TileShift,
    subtract_positives,
)
from candid.losses.blockwise.triton_softmax import FusedSoftmax, fused_softmax


def blockwise_softmax(
    query: Tensor,
    vectors: Tensor,
    positive: Tensor,
    accidental_hits: AccidentalHits,
    *,
    shift: Tensor | None = None,
    row_shift: Tensor | None = None,
    tile_shift: TileShift | None = None,
    log_rest: Tensor | None = None,
    precision: Precision = "float32",
) -> tuple[Tensor, Tensor]:
    """Compute the negative log-likelihood of the positives, and log Z' of the candidates.

    log Z' = logaddexp(log_rest, logsumexp over candidates of [ score - shift ] - row_shift)
    loss   = logaddexp(positive, log Z') - positive

    Args:
        query: [B, D] float32 or float64.
        vectors: [N, D] of the candidates, of the same dtype.
        positive: [B], the positives' scores, of the same dtype; or, where the positives are among
            the candidates, [B] int64, the index of each (to be masked by ``accidental_hits``).
        accidental_hits: which candidates are not negatives of which rows.
        shift: [N], subtracted from the candidates' scores (log expected counts), of the dtype of
            the query; inf leaves a candidate out. None for 0.
        row_shift: [B], subtracted from the scores of all candidates of a row; None for 0.
        tile_shift: returns [rows, columns] to subtract from the scores of a tile, finite and of the
            dtype of the query; None for 0.
        log_rest: [B], the log of further terms of Z' of each row, or None.
        precision: dtype of the matrix products, also inside autocast.

    Returns:
        loss and log_z, [B] each, of the same dtype, both differentiable once in query, vectors,
        scores of the positives and ``log_rest``. A row without candidates has log_z -inf, loss
        0 and gradient 0.
    """
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _BlockwiseSoftmax.apply)
    settings = accidental_hits, shift, row_shift, tile_shift, precision
    return apply(query, vectors, positive, log_rest, *settings)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Compute matrix products in the dtype of their operands, also inside autocast."""
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
        accidental_hits: AccidentalHits,
        shift: Tensor | None,
        row_shift: Tensor | None,
        tile_shift: TileShift | None,
        precision: Precision,
    ) -> tuple[Tensor, Tensor]:
        is_index = not positive.is_floating_point()
        scores = (query * vectors[positive]).sum(dim=1) if is_index else positive
        settings = accidental_hits, shift, row_shift, tile_shift, precision
        fused, unit_grad = _fused(query, vectors, *settings), None
        if fused is None:
            tiles = Tiles(query, vectors, *settings)
            log_z, unit_grad = _forward(tiles, scores, log_rest, ctx.needs_input_grad)
            ctx.mean = None
        else:
            log_z, ctx.mean = _fused_forward(fused, row_shift, log_rest, ctx.needs_input_grad[0])
        gap = log_z - scores
        weight = torch.sigmoid(gap)
        if unit_grad is not None and is_index:
            both = unit_grad.query, unit_grad.vectors
            subtract_positives(both, tiles.query_wide, tiles.vectors_wide, positive, weight)
        ctx.save_for_backward(query, vectors, positive, log_rest, log_z, weight)
        # The gradients and not the tiles, so that the next loss can reuse the memory of the tiles.
        ctx.unit_grad = None if unit_grad is None else (unit_grad.query, unit_grad.vectors)
        ctx.tile_settings = settings
        ctx.set_materialize_grads(False)
        return torch.logaddexp(torch.zeros_like(gap), gap), log_z

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_log_z: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grads = _backward(ctx, grad_loss, grad_log_z)
        if torch.is_grad_enabled():
            leaves = [leaf for leaf in ctx.saved_tensors[:4] if leaf is not None]
            once = cast(Callable[..., Tensor], _DifferentiableOnce.apply)
            grads = [None if grad is None else once(grad, *leaves) for grad in grads]
        return *grads, None, None, None, None, None


class _DifferentiableOnce(torch.autograd.Function):
    """A gradient without a derivative, which autograd would otherwise treat as a constant."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *leaves: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise ConfigError(
            "a softmax that is computed in tiles has no second derivative: compute the scores "
            "of the candidates and use candid.losses.corrected_log_softmax"
        )


def _forward(
    tiles: Tiles, scores: Tensor, log_rest: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor, Gradients | None]:
    """Return log Z' [B] and, if tiles can be cached, the gradients for 1 on every loss."""
    needs_query, needs_vectors = needs_grad[:2]
    unit_grad = None
    caches_tiles = tiles.fits_cache and (needs_query or needs_vectors)
    tiles.reserve(cache=caches_tiles)
    if caches_tiles:
        unit_grad = Gradients(tiles, needs_query=needs_query, needs_vectors=needs_vectors)
    log_z = torch.empty_like(scores)
    with _without_autocast(scores.device.type):
        for rows in tiles.row_blocks:
            row_tiles = tiles.softmax_of_rows(rows, cache=unit_grad is not None)
            log_sums = [tile.log_sum for tile in row_tiles]
            log_z[rows] = _log_z(log_sums, rows, tiles.row_shift, log_rest, log_z)
            if unit_grad is not None and row_tiles:
                weight = torch.sigmoid(log_z[rows] - scores[rows])
                references = torch.stack([tile.reference for tile in row_tiles])
                unit_grad.add(row_tiles, weight * _share(references, rows, tiles.row_shift, log_z))
    return log_z, unit_grad


def _fused(
    query: Tensor,
    vectors: Tensor,
    accidental_hits: AccidentalHits,
    shift: Tensor | None,
    row_shift: Tensor | None,
    tile_shift: TileShift | None,
    precision: Precision,
) -> FusedSoftmax | None:
    if accidental_hits.changed is not None:
        return None
    matches = [(match.of_rows, match.of_candidates) for match in accidental_hits.matches]
    narrow = torch.bfloat16 if precision == "bfloat16" else query.dtype
    return fused_softmax(query, vectors, matches, shift, tile_shift, narrow)


def _fused_forward(
    fused: FusedSoftmax, row_shift: Tensor | None, log_rest: Tensor | None, needs_query: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log Z' [B] and, if needed, its gradient with respect to the query [B, D]."""
    log_sums, means = fused.log_sums(needs_mean=needs_query)
    rows = slice(None)
    log_z = _log_z(list(log_sums.unbind()), rows, row_shift, log_rest, log_sums[0])
    if means is None:
        return log_z, None
    return log_z, (_share(log_sums, rows, row_shift, log_z)[:, :, None] * means).sum(dim=0)


def _fused_vectors(
    fused: FusedSoftmax, row_shift: Tensor | None, log_z: Tensor, grad_scale: Tensor
) -> Tensor:
    """Return the gradient of the candidates' vectors [N, D] for ``grad_scale`` [B] on log Z'."""
    return fused.vector_gradient(log_z if row_shift is None else log_z + row_shift, grad_scale)


@torch.no_grad()
def _backward(ctx: Any, grad_loss: Tensor | None, grad_log_z: Tensor | None) -> list[Tensor | None]:
    """Gradients of query, vectors, positive and log_rest."""
    query, vectors, positive, log_rest, log_z, weight = ctx.saved_tensors
    needs_query, needs_vectors, needs_positive, needs_rest = ctx.needs_input_grad[:4]
    zero = torch.zeros_like(weight)
    positive_scale = zero if grad_loss is None else weight * grad_loss
    grad_scale = positive_scale if grad_log_z is None else positive_scale + grad_log_z
    grad_positive = -positive_scale if needs_positive else None
    grad_rest = grad_scale * _share(log_rest, slice(None), None, log_z) if needs_rest else None
    grad_query = grad_vectors = None
    # Scaled in place and returned, because a copy would be as large as the catalog; a second
    # backward pass through a retained graph gets None and recomputes the tiles.
    unit_grad, ctx.unit_grad = ctx.unit_grad, None
    if unit_grad is not None and grad_log_z is None and grad_loss is not None:
        # The gradient of a row is scaled by the incoming gradient of the row; that of a candidate
        # is a sum over the rows, from which only a common factor can be taken out.
        if needs_query:
            grad_query, needs_query = unit_grad[0] * grad_loss[:, None], False
        if needs_vectors and _is_uniform(grad_loss):
            grad_vectors, needs_vectors = unit_grad[1].mul_(grad_loss[0]), False
    if needs_query or needs_vectors:
        fused = _fused(query, vectors, *ctx.tile_settings)
        if fused is None:
            tiles = Tiles(query, vectors, *ctx.tile_settings)
            both = _recompute_gradients(tiles, grad_scale, log_z, needs_query, needs_vectors)
        else:
            both = (
                grad_scale[:, None] * ctx.mean if needs_query else None,
                _fused_vectors(fused, ctx.tile_settings[2], log_z, grad_scale)
                if needs_vectors
                else None,
            )
        if not positive.is_floating_point():
            subtract_positives(both, query, vectors, positive, positive_scale)
        grad_query = both[0] if needs_query else grad_query
        grad_vectors = both[1] if needs_vectors else grad_vectors
    return [grad_query, grad_vectors, grad_positive, grad_rest]


def _recompute_gradients(
    tiles: Tiles, grad_scale: Tensor, log_z: Tensor, needs_query: bool, needs_vectors: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for ``grad_scale`` [B] on log Z', from tiles that are computed once more."""
    tiles.reserve(cache=False)
    gradients = Gradients(tiles, needs_query=needs_query, needs_vectors=needs_vectors)
    with _without_autocast(log_z.device.type):
        for rows in tiles.row_blocks:
            row_hits = tiles.row_hits(rows)
            # In the order of ``Gradients.add``, so that both give the same bits.
            for block in reversed(range(len(tiles.column_blocks))):
                tile = tiles.softmax(rows, block, row_hits, buffer=0)
                share = _share(tile.reference, rows, tiles.row_shift, log_z)
                gradients.add([tile], (grad_scale[rows] * share)[None])
    return gradients.query, gradients.vectors


def _log_z(
    log_sums: list[Tensor],
    rows: slice,
    row_shift: Tensor | None,
    log_rest: Tensor | None,
    like: Tensor,
) -> Tensor:
    """Log Z' [rows] from the log-sums [rows] of the tiles of a block of rows."""
    if log_sums:
        log_z = torch.stack(log_sums).logsumexp(dim=0)
    else:
        log_z = torch.full_like(like[rows], -math.inf)
    if row_shift is not None:
        log_z = log_z - row_shift[rows]
    return log_z if log_rest is None else torch.logaddexp(log_rest[rows], log_z)


def _share(log_part: Tensor, rows: slice, row_shift: Tensor | None, log_z: Tensor) -> Tensor:
    """Exp(log_part - row_shift - log Z') [rows], 0 where Z' is 0."""
    log_z = log_z[rows]
    log_share = log_part - log_z
    if row_shift is not None:
        log_share = log_share - row_shift[rows]
    return torch.exp(log_share).masked_fill(log_z.isneginf(), 0.0)


def _is_uniform(grad: Tensor) -> bool:
    """Return whether all rows certainly have the same gradient, without synchronising."""
    if len(grad) == 0:
        return False
    if grad.stride(0) == 0 or len(grad) == 1:
        return True
    return grad.device.type == "cpu" and bool((grad == grad[0]).all())
