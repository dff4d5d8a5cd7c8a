"""Lists of candidates by row, whose scores change: ranges of one list of entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowList:
    """Candidates of each row, and what is added to their scores.

    Rows may share entries: those of one user have one range of entries.

    Attributes:
        first: [B] int64, the first entry of each row.
        stop: [B] int64, the entry after its last one.
        candidates: [E] int64, the candidate of each entry, ascending and distinct within a row;
            None where entry e is candidate e.
        change: [E] float32 or float64, added to the scores; None for -inf.
    """

    first: Tensor
    stop: Tensor
    candidates: Tensor | None
    change: Tensor | None = None

    def pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the entries of a block of rows, one after the other.

        Args:
            rows: the block.

        Returns:
            rows, counted from the start of the block, and entries, [n] int64 each.
        """
        first, count = self.first[rows], self.stop[rows] - self.first[rows]
        row = torch.repeat_interleave(count)
        before = count.cumsum(0) - count
        return row, torch.arange(len(row), device=row.device) + (first - before)[row]

    def candidates_of(self, entries: Tensor) -> Tensor:
        """Return the candidates of entries."""
        return entries if self.candidates is None else self.candidates[entries]
