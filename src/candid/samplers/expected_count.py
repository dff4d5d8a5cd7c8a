"""Expected counts from log Q, and by source for candidates of which a row loses some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from candid.candidates import BatchCounts, RowCounts


@dataclass(frozen=True, slots=True)
class CountParts:
    """Expected counts of items, apart for the sources that read the batch.

    Attributes:
        log_fixed: shape of the ids: log of the expected counts from all other sources, which are
            the same for every row; None without such a source.
        log_q: for each source that takes rows of the batch, in the order of the samplers, log Q of
            the items.
    """

    log_fixed: Tensor | None
    log_q: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchSource:
    """The rows that a source takes from the batch, or from earlier batches.

    Attributes:
        num_of_others: [B], how many of them are compared with each row: those of other users.
        is_set: whether each item is kept once.
    """

    num_of_others: Tensor
    is_set: bool


def make_row_counts(
    log_count: Tensor,
    parts: CountParts,
    parts_of_positive: CountParts,
    sources: Sequence[BatchSource],
) -> RowCounts:
    """Return the expected counts of each row: Σ over the sources, without the row's own user.

    Args:
        log_count: shape of the ids, ``Candidates.log_expected_count``.
        parts: of the candidates' ids.
        parts_of_positive: of the rows' positives, each [B].
        sources: one for each of ``parts.log_q``.
    """
    like, log_count = log_count, log_count.double()
    inverse = (-log_count).exp().float()
    counts, positive = [], []
    if parts_of_positive.log_fixed is not None:
        positive.append(parts_of_positive.log_fixed)
    for log_q, of_positive, source in zip(
        parts.log_q, parts_of_positive.log_q, sources, strict=True
    ):
        log_q, others = log_q.double(), source.num_of_others
        counts.append(
            BatchCounts(
                share=inverse if source.is_set else (log_q - log_count).exp().float(),
                log_miss=torch.log1p(-log_q.exp()).float() if source.is_set else None,
                num_of_others=others.float(),
            )
        )
        positive.append(log_expected_count(of_positive, others, source.is_set))
    fixed = parts.log_fixed
    return RowCounts(
        fixed_share=(
            torch.zeros_like(like) if fixed is None else (fixed.double() - log_count).exp().float()
        ),
        parts=tuple(counts),
        log_expected_count_positive=torch.logsumexp(torch.stack(positive), dim=0),
    )


def log_expected_count(log_q: Tensor, num_samples: int | Tensor, distinct: bool) -> Tensor:
    """Return the log expected count of items of probability Q among n independent samples.

    log(n·Q) with replacement; log(1 - (1 - Q)^n), the inclusion probability, for the set of
    distinct items among them. Computed in float64, where both are accurate to rounding for any
    Q from 1e-300 to 1 and any n.

    Args:
        log_q: log Q, any shape; -inf where Q = 0.
        num_samples: n, an integer or a tensor that broadcasts (an average may be fractional).
        distinct: whether repeated items were removed.

    Returns:
        float32, shape of ``log_q``.
    """
    log_q = log_q.double()
    n = torch.as_tensor(num_samples, dtype=torch.float64, device=log_q.device)
    if not distinct:
        return (n.log() + log_q).float()
    # 0 · log(1 - 1) would be NaN: zero samples include no item, for any Q.
    log_miss = torch.where(n > 0, n * torch.log1p(-log_q.exp()), 0.0)
    return torch.log(-torch.expm1(log_miss)).float()
