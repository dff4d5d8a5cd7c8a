"""Time gaps: the time between two interactions of a history, in buckets of powers of two.

With a gap of g whole seconds, bucket 1 + floor(log2(g + 1)) is 1 for less than a second, 2 for one
to two seconds, 31 for 34 years and more. Bucket 0 is an unknown or negative gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor

from candid.batches import UNKNOWN_TIME

NUM_BUCKETS: Final = 32
LONGEST: Final = 2**30
"""Seconds; longer gaps are in the last bucket."""
LATER: Final = NUM_BUCKETS
"""Bucket of pairs whose key is after the query: no attention."""
FIRST: Final = NUM_BUCKETS
"""Bucket of the first interaction of a history, which has no previous one."""
NUM_CODES: Final = NUM_BUCKETS + 1


def seconds_before_last(times: Tensor, sequences: Tensor, num_sequences: int) -> Tensor:
    """Return the time from each interaction to the latest one of its sequence: [T] int32.

    Args:
        times: [T] int64 microseconds, ``UNKNOWN_TIME`` where unknown.
        sequences: [T] int64, the sequence of each interaction.
        num_sequences: S.

    Returns:
        whole seconds, at most ``LONGEST`` - 1; -1 where the time is unknown.
    """
    earliest = torch.iinfo(torch.int64).min
    is_known, seconds = times != UNKNOWN_TIME, whole_seconds(times)
    last = seconds.new_full((num_sequences,), earliest)
    last = last.scatter_reduce(0, sequences, seconds.masked_fill(~is_known, earliest), "amax")
    return seconds_between(seconds, last.index_select(0, sequences), is_known)


def whole_seconds(times: Tensor) -> Tensor:
    """Return times, in microseconds, as seconds since 1970-01-01, rounded down: int64.

    Rounded before the difference: that to the latest interaction would otherwise depend on the
    fraction of its second, which an earlier query must not see.
    """
    return times // 1_000_000  # exact in ONNX as well, unlike div with a rounding mode


def seconds_between(seconds: Tensor, last: Tensor, is_known: Tensor) -> Tensor:
    """Return ``last`` - ``seconds`` as in ``seconds_before_last``, of tensors of one shape."""
    return (last - seconds).clamp(max=LONGEST - 1).masked_fill(~is_known, -1).int()


def gaps_plus_one(earlier: Tensor, later: Tensor) -> Tensor:
    """Return the seconds from one interaction to another, plus one: int32, broadcast.

    Args:
        earlier: int32, from ``seconds_before_last``.
        later: int32, the same of the other interaction.

    Returns:
        a number below 1 if a time is unknown or ``later`` is before ``earlier``.
    """
    return earlier + 1 - later.masked_fill(later < 0, LONGEST)


def bucket_of(gaps: Tensor) -> Tensor:
    """Return the bucket of gaps from ``gaps_plus_one``: int32 of the same shape."""
    # The exponent of a float is the logarithm of its value, rounded down; 126 is that of 1/2.
    return (gaps.float().clamp_(min=0.5).view(torch.int32) >> 23).sub_(126)


def previous_buckets(seconds: Tensor, positions: Tensor) -> Tensor:
    """Return the bucket of the gap to the previous interaction: [T] int32, or ``FIRST``.

    Args:
        seconds: [T] int32, from ``seconds_before_last``.
        positions: [T] int64, position of each interaction in its sequence.
    """
    buckets = bucket_of(gaps_plus_one(seconds.roll(1), seconds))
    return torch.where(positions == 0, torch.where(seconds < 0, 0, FIRST).int(), buckets)


def query_gaps_plus_one(last: Tensor, times: Tensor) -> Tensor:
    """Return the seconds from the last interaction to the query, plus one: int32, broadcast.

    Args:
        last: int64 microseconds, time of the last interaction, ``UNKNOWN_TIME`` where unknown.
        times: int64 microseconds, time of the query.

    Returns:
        a number below 1 where a time is unknown or the query is before the interaction.
    """
    gaps = (whole_seconds(times) - whole_seconds(last)).clamp(min=-1, max=LONGEST - 1)
    is_unknown = (last == UNKNOWN_TIME) | (times == UNKNOWN_TIME)
    return (gaps + 1).masked_fill(is_unknown, 0).int()


def pair_buckets(seconds: Tensor) -> Tensor:
    """Return the bucket of each pair of interactions: [S, L, L] int32, ``LATER`` for later keys.

    Args:
        seconds: [S, L] int32, from ``seconds_before_last``.
    """
    buckets = bucket_of(gaps_plus_one(seconds[:, None, :], seconds[:, :, None]))
    return buckets.masked_fill_(later_keys(seconds.shape[1], seconds.device), LATER)


def later_keys(length: int, device: torch.device) -> Tensor:
    """Return whether the key (axis 1) is after the query (axis 0): [L, L] bool."""
    positions = torch.arange(length, device=device)
    return positions[None, :] > positions[:, None]


def with_later(table: Tensor) -> Tensor:
    """Append the bias of ``LATER``, minus infinity, to a table of biases [H, NUM_BUCKETS]."""
    return torch.cat([table, table.new_full((len(table), 1), -torch.inf)], dim=1)


def look_up(table: Tensor, buckets: Tensor) -> Tensor:
    """Return the bias of each pair and head: [S, H, L, L].

    Args:
        table: [H, K].
        buckets: [S, L, L] int32, below K.
    """
    apply = cast(Callable[[Tensor, Tensor], Tensor], _LookUp.apply)
    return apply(table, buckets)


class _LookUp(torch.autograd.Function):
    """Look-up in a small table; its gradient is a histogram of few, often repeated buckets."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, buckets: Tensor) -> Tensor:
        ctx.save_for_backward(buckets)
        ctx.num_buckets = table.shape[1]
        biases = table.index_select(1, buckets.flatten())
        return biases.view(len(table), *buckets.shape).transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (buckets,) = ctx.saved_tensors
        if gradient.device.type == "cpu":
            return _sums_by_head(gradient, buckets, ctx.num_buckets), None
        return _sums_by_row(gradient, buckets, ctx.num_buckets), None


def _sums_by_head(values: Tensor, buckets: Tensor, num_buckets: int) -> Tensor:
    """Sum values [S, H, L, L] by bucket, one head after the other: [H, num_buckets]."""
    ids = buckets.flatten()
    sums = values.new_zeros(values.shape[1], num_buckets)
    for head, total in enumerate(sums.unbind()):
        total.index_add_(0, ids, values[:, head].flatten())
    return sums


def _sums_by_row(values: Tensor, buckets: Tensor, num_buckets: int) -> Tensor:
    """Sum values [S, H, L, L] by bucket: [H, num_buckets].

    Each row of attention has its own sums first: atomic additions of all rows to the same few
    numbers would wait for each other.
    """
    size, num_heads, length, _ = values.shape
    sums = values.new_zeros(size, num_heads, length, num_buckets)
    sums.scatter_add_(3, buckets[:, None].expand_as(values).long(), values)
    return sums.sum(dim=(0, 2))
