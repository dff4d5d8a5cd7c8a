"""Expected counts from log Q, and by source for candidates of which a row loses some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from candid.candidates import num_of_others
from candid.row_counts import BatchCounts, RowCounts


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
        num_rows: how many rows it takes.
        user_ids: [num_rows], their users; None where only a row itself is left out.
    """

    num_of_others: Tensor
    is_set: bool
    num_rows: int
    user_ids: Tensor | None

    @classmethod
    def of_part(cls, part: BatchCounts) -> BatchSource:
        """Return the source of a part of the counts."""
        return cls(part.num_of_others, part.log_miss is not None, part.num_rows, part.user_ids)

    def beside(self, user_ids: Tensor, num_placeholders: int) -> BatchSource:
        """Return the source for rows [B] that are not in the batch; see ``beside_the_batch``."""
        if self.user_ids is None:
            others = torch.full_like(user_ids, self.num_rows)
        else:
            others = num_of_others(self.user_ids, user_ids)
        if self.is_set:
            others = others - num_placeholders
        return replace(self, num_of_others=others)


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
    counts = []
    for log_q, source in zip(parts.log_q, sources, strict=True):
        log_q, others = log_q.double(), source.num_of_others
        counts.append(
            BatchCounts(
                share=inverse if source.is_set else (log_q - log_count).exp().float(),
                log_miss=torch.log1p(-log_q.exp()).float() if source.is_set else None,
                num_of_others=others.float(),
                num_rows=source.num_rows,
                user_ids=source.user_ids,
            )
        )
    fixed = parts.log_fixed
    return RowCounts(
        fixed_share=(
            torch.zeros_like(like) if fixed is None else (fixed.double() - log_count).exp().float()
        ),
        parts=tuple(counts),
        log_expected_count_positive=_log_count_of_rows(parts_of_positive, sources),
    )


def beside_the_batch(
    row_counts: RowCounts,
    parts_of_positive: CountParts,
    user_ids: Tensor,
    num_placeholders: int = 0,
) -> RowCounts:
    """Return the counts for other rows than those of the batch that was sampled.

    Args:
        row_counts: as sampled.
        parts_of_positive: of the positives of the other rows, each [B].
        user_ids: [B] int64, their users, whose rows in the batch do not count for them.
        num_placeholders: rows of the batch that repeat the items of others, so that they add
            nothing to a set.
    """
    sources = [
        BatchSource.of_part(part).beside(user_ids, num_placeholders) for part in row_counts.parts
    ]
    return RowCounts(
        fixed_share=row_counts.fixed_share,
        parts=tuple(
            replace(part, num_of_others=source.num_of_others.float())
            for part, source in zip(row_counts.parts, sources, strict=True)
        ),
        log_expected_count_positive=_log_count_of_rows(parts_of_positive, sources),
    )


def _log_count_of_rows(parts: CountParts, sources: Sequence[BatchSource]) -> Tensor:
    """[B] float32, log of the expected count of one item of each row, for that row."""
    log_counts = [] if parts.log_fixed is None else [parts.log_fixed]
    for log_q, source in zip(parts.log_q, sources, strict=True):
        log_counts.append(log_expected_count(log_q, source.num_of_others, source.is_set))
    return torch.logsumexp(torch.stack(log_counts), dim=0)


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
