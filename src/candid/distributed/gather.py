"""Rows of all processes with their gradient: each process returns the gradient of its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from candid.distributed.group import Group


def gather_with_gradient(rows: Tensor, group: Group, counts: Sequence[int] | None = None) -> Tensor:
    """Concatenate the rows of all processes, in the order of ranks, with gradient.

    The gradient of a row is the sum of those that all processes compute for it: a loss that is a
    sum over processes, each with its own rows, then has the gradient of one process.

    Args:
        rows: [n, ...], n may differ between processes.
        group: of the processes.
        counts: n of every process, if known; None: they are exchanged first.

    Returns:
        [sum of n, ...].

    Example:
        >>> import torch
        >>> from candid.distributed import Group, gather_with_gradient
        >>> gather_with_gradient(torch.ones(2, 3), Group()).shape
        torch.Size([2, 3])
    """
    if group.is_single:
        return rows
    if counts is None:
        counts = [count for (count,) in group.gather_counts([len(rows)])]
    gathered: Tensor = _Gather.apply(rows, group, tuple(counts))  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group, counts: tuple[int, ...]) -> Tensor:
        ctx.group, ctx.counts = group, counts
        return group.gather_rows(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.group.scatter_sum(gradients[0], ctx.counts), None, None
