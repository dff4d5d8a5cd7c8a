"""Records of expected counts that differ between rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """The part of expected counts that comes from rows of the batch or of earlier batches.

    A row of user u is not compared with the c rows of its own user (at least itself, in its own
    batch). Of n rows with positives from Q the other n - c contribute (n - c) · Q(d) to the
    expected count of item d, or 1 - (1 - Q(d))^(n - c) where each item is kept once.

    Attributes:
        share: shape of the candidates' ids: Q(d) / e(d), or 1 / e(d) where each item is kept
            once; e(d) is ``Candidates.log_expected_count``.
        log_miss: shape of ``share``: log(1 - Q(d)) where each item is kept once, otherwise None.
        num_of_others: [B] floats, n - c.
        num_rows: n.
        user_ids: [n] int64, the user of each of these rows, to count c for rows outside the batch;
            None where only a row itself is left out, and in groups.
    """

    share: Tensor
    log_miss: Tensor | None
    num_of_others: Tensor
    num_rows: int
    user_ids: Tensor | None = None


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Expected counts by row, for candidates of which a row loses those of its own user.

    The expected count of item d for a row is e(d) times (``fixed_share`` plus the shares of
    ``parts``): a few vectors over the candidates and one number for each row and part, so that
    no [B, N] matrix is stored.

    Attributes:
        fixed_share: shape of the candidates' ids: the share of e(d) that is the same for all
            rows, from sources that do not read the batch.
        parts: the sources that do.
        log_expected_count_positive: [B], log of the expected count of each row's positive for
            that row.
    """

    fixed_share: Tensor
    parts: tuple[BatchCounts, ...]
    log_expected_count_positive: Tensor

    def log_ratio(
        self, rows: slice, of_items: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> Tensor:
        """Return log(e_row(d) / e(d)) for some rows and candidates: [rows, n].

        Args:
            rows: which rows.
            of_items: selects the candidates from a tensor of the shape of the ids: [n], or
                [rows, n].
            dtype: of the arithmetic and of the result, at least float32.
        """
        total = of_items(self.fixed_share).to(dtype)
        for part in self.parts:
            others = part.num_of_others[rows, None].to(dtype)
            share = of_items(part.share).to(dtype)
            if part.log_miss is not None:
                log_miss = of_items(part.log_miss).to(dtype)
                # 0 · log(1 - 1) would be NaN: zero rows include no item.
                others = -torch.expm1(torch.where(others > 0, others * log_miss, 0.0))
            total = torch.addcmul(total, others, share)
        # 0 where only rows of the row's own user have the item: it is masked in that row.
        return total.masked_fill(total == 0, 1.0).log_()

    @classmethod
    def joined(
        cls,
        samples: Sequence[RowCounts],
        of_items: Callable[[list[Tensor]], Tensor],
        of_rows: Callable[[list[Tensor]], Tensor],
    ) -> RowCounts:
        """Join the counts of several samples of one sampler into one record.

        Args:
            samples: at least one.
            of_items: joins tensors of the shape of the samples' ids; padding may be any finite
                number.
            of_rows: joins tensors [B].
        """

        def part(parts: tuple[BatchCounts, ...]) -> BatchCounts:
            log_miss = [one.log_miss for one in parts if one.log_miss is not None]
            return BatchCounts(
                share=of_items([one.share for one in parts]),
                log_miss=of_items(log_miss) if log_miss else None,
                num_of_others=of_rows([one.num_of_others for one in parts]),
                num_rows=parts[0].num_rows,
            )

        return cls(
            fixed_share=of_items([one.fixed_share for one in samples]),
            parts=tuple(map(part, zip(*(one.parts for one in samples), strict=True))),
            log_expected_count_positive=of_rows(
                [one.log_expected_count_positive for one in samples]
            ),
        )

    def of_rows(self, rows: slice | Tensor, by_row: Callable[[Tensor], Tensor]) -> RowCounts:
        """Return the counts of some rows; ``by_row`` selects them from vectors of candidates."""
        return RowCounts(
            fixed_share=by_row(self.fixed_share),
            parts=tuple(
                replace(
                    part,
                    share=by_row(part.share),
                    log_miss=None if part.log_miss is None else by_row(part.log_miss),
                    num_of_others=part.num_of_others[rows],
                )
                for part in self.parts
            ),
            log_expected_count_positive=self.log_expected_count_positive[rows],
        )
