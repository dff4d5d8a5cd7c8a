"""The shift of a tile of scores where expected counts differ between rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from candid.row_counts import RowCounts

RowCountTensors = tuple[Tensor, Tensor, Tensor]
"""Counts of a tile that differ between rows: fixed part [columns], part for each other row
[columns], and the number of other rows [B] of all rows; count = fixed + others · part."""


@dataclass(frozen=True, slots=True)
class CountTerms:
    """``RowCounts`` as arrays of one dtype, for a kernel; P parts.

    Attributes:
        fixed_share: [N].
        share: [P, N].
        log_miss: [P, N], 0 for parts without it.
        num_of_others: [P, B].
        miss_parts: bit p is set where part p has a ``log_miss``.
    """

    fixed_share: Tensor
    share: Tensor
    log_miss: Tensor
    num_of_others: Tensor
    miss_parts: int

    @property
    def num_parts(self) -> int:
        """P."""
        return len(self.share)


@dataclass(frozen=True, slots=True)
class CountShift:
    """``factor`` times log(e_row(d) / e(d)), a ``TileShift`` that a kernel can also compute itself.

    Attributes:
        row_counts: of N candidates that all rows share.
        dtype: of the arithmetic and of the result.
        factor: 1 for the softmax of the scores, 2 for that of the doubled scores.
    """

    row_counts: RowCounts
    dtype: torch.dtype
    factor: float = 1.0

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Return the shift of a tile: [rows, columns]."""
        ratio = self.row_counts.log_ratio(rows, lambda values: values[columns], self.dtype)
        return ratio if self.factor == 1.0 else self.factor * ratio

    def counts(self, columns: slice) -> RowCountTensors | None:
        """Return counts whose log is the shift, for one source from the batch with repetitions."""
        counts = self.row_counts
        if self.factor != 1.0 or len(counts.parts) != 1 or counts.parts[0].log_miss is not None:
            return None
        part = counts.parts[0]
        return counts.fixed_share[columns], part.share[columns], part.num_of_others

    def terms(self) -> CountTerms:
        """Return the arrays from which a kernel computes the ratio."""
        fixed, parts = self.row_counts.fixed_share.to(self.dtype), self.row_counts.parts
        no_miss = torch.zeros_like(fixed)

        def stacked(values: list[Tensor], like: Tensor) -> Tensor:
            wide = [value.to(self.dtype) for value in values]
            return torch.stack(wide) if wide else like.new_zeros((0, len(like)))

        return CountTerms(
            fixed_share=fixed.contiguous(),
            share=stacked([part.share for part in parts], fixed),
            log_miss=stacked(
                [no_miss if part.log_miss is None else part.log_miss for part in parts], fixed
            ),
            num_of_others=stacked([part.num_of_others for part in parts], fixed[:0]),
            miss_parts=sum(1 << i for i, part in enumerate(parts) if part.log_miss is not None),
        )
