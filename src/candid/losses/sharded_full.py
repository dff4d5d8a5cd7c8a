"""The exact softmax over a catalog whose item vectors are on several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    counts: Sequence[int] | None = None,
    precision: Precision = "float32",
    effective_sample_size: bool = False,
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
        counts: b of every process, if known; None: they are exchanged first.
        precision: dtype of the matrix products.
        effective_sample_size: report ``effective_sample_size``, as ``full_softmax`` does.

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
    if counts is None:
        counts = [count for (count,) in group.gather_counts([len(query)])]
    positives = group.gather_rows(positive_ids.long(), counts, "gather of positives")
    outside = (positives < 0) | (positives >= num_items)
    if outside.device.type == "cpu" and bool(outside.any()):
        bad = int(positives[outside][0])
        raise DataError(
            f"positive id {bad} is outside the catalog: ids must be 0 to {num_items - 1}"
        )
    apply = cast(Callable[..., tuple[Tensor, Tensor, Tensor | None]], _ShardedSoftmax.apply)
    settings = positives, own_items, counts, group, precision, effective_sample_size
    loss, log_z, ess = apply(query.to(wide), items.to(wide), *settings)
    return LossOutput(
        loss=loss,
        log_z=log_z,
        sample_weight=-torch.expm1(-loss.detach()),
        effective_sample_size=ess,
    )


class _ShardedSoftmax(torch.autograd.Function):
    """Loss, log Z' and effective sample size of the own rows, from the items of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        items: Tensor,
        positives: Tensor,
        own_items: range,
        counts: Sequence[int],
        group: Group,
        precision: Precision,
        effective_sample_size: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        needs_grad = any(ctx.needs_input_grad[:2])
        every = group.gather_rows(query, counts, "gather of query vectors")
        every, own = (tensor.detach().requires_grad_(needs_grad) for tensor in (every, items))
        is_own = (positives >= own_items.start) & (positives < own_items.stop)
        rows = is_own.nonzero()[:, 0]
        ids = torch.arange(own_items.start, own_items.stop, device=items.device)
        hits = AccidentalHits(IdMatch(positives, ids))

        def log_sums(scale: float) -> Tensor:
            """Return log Σ exp(scale · score) of the own items, by process: [W, B]."""
            zeros = query.new_zeros(len(every))
            scaled = scale * every.detach()
            _, part = blockwise_softmax(scaled, own.detach(), zeros, hits, precision=precision)
            equal = [1] * group.world_size
            return group.gather_rows(part[None], equal, "gather of partition functions")

        log_rest = None
        if not group.is_single:
            parts = log_sums(1.0)
            parts[group.rank] = -torch.inf
            log_rest = parts.logsumexp(0)
        with torch.set_grad_enabled(needs_grad):
            vectors = own.index_select(0, positives[rows] - own_items.start)
            scores = (every.index_select(0, rows) * vectors).sum(1)
            zeros = query.new_zeros(len(every))
            sums = group.sum(zeros.index_copy(0, rows, scores.detach()), "sum of positive scores")
            # Every row has the score of its positive; the own ones carry the gradient.
            positive = sums.index_copy(0, rows, scores)
            loss, log_z = blockwise_softmax(
                every, own, positive, hits, log_rest=log_rest, precision=precision
            )
        begin = sum(counts[: group.rank])
        own_rows = slice(begin, begin + counts[group.rank])
        ctx.graph, ctx.counts, ctx.group = (every, own, loss), counts, group
        ess = None
        if effective_sample_size:
            # Σ w² is the sum over the doubled scores.
            ess = torch.exp(2.0 * log_z.detach() - log_sums(2.0).logsumexp(0))[own_rows]
            ess.masked_fill_(log_z.detach()[own_rows].isneginf(), 0.0)
        # A row without another item has loss 0 and log Z' -inf, as in the full softmax.
        result = loss.detach()[own_rows].clone(), log_z.detach()[own_rows].clone()
        ctx.mark_non_differentiable(*(tensor for tensor in (result[1], ess) if tensor is not None))
        return *result, ess

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        every, own, loss = ctx.graph
        scale = ctx.group.gather_rows(
            grad_loss.contiguous(), ctx.counts, "gather of loss gradients"
        )
        # Of every row the terms of the own items; those of the others are on their processes.
        grad_every, grad_own = torch.autograd.grad(loss, [every, own], scale)
        grad_query = ctx.group.scatter_sum(grad_every, ctx.counts, "sum of query gradients")
        needs_query, needs_items = ctx.needs_input_grad[:2]
        return (
            grad_query if needs_query else None,
            grad_own if needs_items else None,
            *[None] * 6,
        )
