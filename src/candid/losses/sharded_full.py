"""The exact softmax over a catalog whose item vectors are on several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from candid.distributed import Group, current_group
from candid.errors import ConfigError, DataError
from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.softmax import blockwise_softmax
from candid.losses.blockwise.tiles import Precision
from candid.losses.inputs import check_rows, check_width, widened
from candid.losses.output import LossOutput


def sharded_full_softmax(
    query: Tensor,
    own_embeddings: Tensor,
    positive_ids: Tensor,
    *,
    own_items: range,
    num_items: int,
    group: Group | None = None,
    precision: Precision = "float32",
) -> LossOutput:
    """Compute ``full_softmax`` where each process has its own rows and its own items.

    A collective: every process calls it, also one without rows, and runs the backward pass. The
    queries of all rows travel to every process, B × D numbers, and their gradients back. No process
    has the vectors of other items. With log Z' of the items of process k, the row's log Z' is the
    log-sum-exp over k; the positive is left out by the process that has it.

    The sum of the losses over the processes has the gradient of one process: that of the own items
    counts the rows of all processes. A loss that divides by the number of rows uses that of all.

    Args:
        query: [b, D], the rows of this process.
        own_embeddings: [n, D], the vectors of the items of this process.
        positive_ids: [b] int64, items of the whole catalog.
        own_items: ids of the items of this process, a range of length n. The ranges of all
            processes cover the catalog once.
        num_items: V, items of the whole catalog.
        group: the processes; None: the open group, or this process alone.
        precision: dtype of the matrix products.

    Returns:
        [b] losses and ``log_z``, of which ``loss`` carries the gradient, and sample weights 1 - P.

    Raises:
        ConfigError: shapes that do not fit together; raised on the process that has them.
        DataError: a positive outside the catalog, on any process; raised on every process.

    Example:
        >>> import torch
        >>> from candid.losses import sharded_full_softmax
        >>> query, items = torch.randn(2, 4), torch.zeros(10, 4)
        >>> positives = torch.tensor([1, 2])
        >>> output = sharded_full_softmax(
        ...     query, items, positives, own_items=range(10), num_items=10
        ... )
        >>> output.loss.exp()
        tensor([10., 10.])
    """
    group = current_group() if group is None else group
    check_rows(query, positive_ids)
    check_width(query, own_embeddings, len(own_embeddings))
    if len(own_embeddings) != len(own_items):
        raise ConfigError(
            f"own_embeddings has {len(own_embeddings)} rows for {len(own_items)} items: pass the "
            "vectors of own_items"
        )
    query, items = widened(query), widened(own_embeddings)
    wide = torch.promote_types(query.dtype, items.dtype)
    counts = [count for (count,) in group.gather_counts([len(query)])]
    positives = group.gather_rows(positive_ids.long(), counts)
    outside = (positives < 0) | (positives >= num_items)
    if outside.device.type == "cpu" and bool(outside.any()):
        bad = int(positives[outside][0])
        raise DataError(
            f"positive id {bad} is outside the catalog: ids must be 0 to {num_items - 1}"
        )
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _ShardedSoftmax.apply)
    settings = positives, own_items, counts, group, precision
    loss, log_z = apply(query.to(wide), items.to(wide), *settings)
    return LossOutput(loss=loss, log_z=log_z, sample_weight=-torch.expm1(-loss.detach()))


class _ShardedSoftmax(torch.autograd.Function):
    """Loss and log Z' of the own rows, from the items of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        items: Tensor,
        positives: Tensor,
        own_items: range,
        counts: list[int],
        group: Group,
        precision: Precision,
    ) -> tuple[Tensor, Tensor]:
        needs_grad = any(ctx.needs_input_grad[:2])
        with torch.set_grad_enabled(needs_grad):
            every = group.gather_rows(query, counts).detach().requires_grad_(needs_grad)
            own = items.detach().requires_grad_(needs_grad)
            # Of all rows over the own items: the part of log Z', and the score of the positive.
            partial = _log_partition(every, own, positives, own_items, precision)
            is_own = (positives >= own_items.start) & (positives < own_items.stop)
            rows = is_own.nonzero()[:, 0]
            vectors = own.index_select(0, positives[rows] - own_items.start)
            scores = (every.index_select(0, rows) * vectors).sum(1)
        sums = torch.zeros_like(partial).index_copy(0, rows, scores.detach())
        positive = group.sum(sums)
        parts = group.gather_rows(partial.detach()[None], [1] * group.world_size)
        log_z = parts.logsumexp(0)
        gap = log_z - positive
        begin = sum(counts[: group.rank])
        own_rows = slice(begin, begin + counts[group.rank])
        ctx.graph = every, own, partial, scores, rows
        ctx.share = torch.exp(partial.detach() - log_z).masked_fill(log_z.isneginf(), 0.0)
        ctx.weight = torch.sigmoid(gap)
        ctx.counts, ctx.group = counts, group
        ctx.needs_query, ctx.needs_items = ctx.needs_input_grad[:2]
        loss = torch.logaddexp(torch.zeros_like(gap), gap)
        # Of which row there is no other item, as in the full softmax: loss 0, log Z' -inf.
        result = loss[own_rows].clone(), log_z[own_rows].clone()
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        every, own, partial, scores, rows = ctx.graph
        scale = ctx.group.gather_rows(grad_loss.contiguous(), ctx.counts) * ctx.weight
        # d loss = weight · (d log Z' - d positive), and d log Z' = Σ_k share_k · d log Z'_k.
        grad_every, grad_own = torch.autograd.grad(
            [partial, scores], [every, own], [scale * ctx.share, -scale[rows]]
        )
        grad_query = ctx.group.scatter_sum(grad_every, ctx.counts)
        return (
            grad_query if ctx.needs_query else None,
            grad_own if ctx.needs_items else None,
            *[None] * 5,
        )


def _log_partition(
    query: Tensor, items: Tensor, positives: Tensor, own_items: range, precision: Precision
) -> Tensor:
    """Return log Σ exp(score) of each row over some items without its positive: [B]."""
    ids = torch.arange(own_items.start, own_items.stop, device=items.device)
    hits = AccidentalHits(IdMatch(positives, ids))
    zeros = query.new_zeros(len(query))
    _, log_z = blockwise_softmax(query, items, zeros, hits, precision=precision)
    return log_z
