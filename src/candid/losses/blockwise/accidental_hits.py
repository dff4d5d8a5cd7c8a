"""Which candidates are no negatives of which rows, found from ids, a block at a time.

On a CPU the few pairs of row and candidate that are excluded are looked up in sorted ids; on an
accelerator, where their number would have to be waited for, the ids of a tile are compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

DENSE_SHARE = 16
"""Where more than one in so many pairs of a block is excluded, ids are compared on a CPU too."""
ROWS_AT_ONCE = 512
"""Rows whose hits are counted together."""


class IdMatch:
    """Excludes a candidate from the rows that have its id.

    Args:
        of_rows: [B] int64.
        of_candidates: [N] int64, or None where candidate n has the id n.
    """

    def __init__(self, of_rows: Tensor, of_candidates: Tensor | None = None) -> None:
        self.of_rows = of_rows.contiguous()
        self.of_candidates = of_candidates
        self._order: Tensor | None = None
        if of_rows.device.type != "cpu":
            return
        if of_candidates is None:
            self._first, self._count = self.of_rows, torch.ones_like(of_rows)
            return
        ordered, self._order = of_candidates.sort(stable=True)
        self._first = torch.searchsorted(ordered, self.of_rows)
        self._count = torch.searchsorted(ordered, self.of_rows, right=True) - self._first

    def is_sparse(self, rows: slice) -> bool:
        """Whether ``pairs`` is to be had, and short."""
        if self.of_rows.device.type != "cpu" or self.of_candidates is None:
            return self.of_rows.device.type == "cpu"
        count = self._count[rows]
        return int(count.sum()) * DENSE_SHARE <= len(count) * len(self.of_candidates)

    def pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Rows of the block, counted from its start, and their candidates (CPU only)."""
        first, count = self._first[rows], self._count[rows]
        row = torch.repeat_interleave(count)
        before = count.cumsum(0) - count
        place = torch.arange(len(row)) + (first - before)[row]
        return row, place if self._order is None else self._order[place]

    def of_pairs(self, rows: slice, row: Tensor, candidate: Tensor) -> Tensor:
        """Whether these pairs match: bool."""
        ids = candidate if self.of_candidates is None else self.of_candidates[candidate]
        return self.of_rows[rows][row] == ids

    def of_tile(self, rows: slice, columns: slice) -> Tensor:
        """[rows, columns] bool."""
        assert self.of_candidates is not None
        return self.of_rows[rows, None] == self.of_candidates[columns]


class RowHits(Protocol):
    """The excluded pairs of a block of rows."""

    def mask(self, tile: Tensor, block: int) -> None:
        """Set the excluded scores of a tile [rows, columns] to -inf; block: which columns."""
        ...


class AccidentalHits:
    """Pairs of a row and a candidate that is no negative of it: they match in one of several ids.

    Args:
        matches: see ``IdMatch``; at least one, over the same rows and candidates.
    """

    def __init__(self, *matches: IdMatch) -> None:
        self.matches = matches

    def of_rows(self, rows: slice, blocks: list[slice]) -> RowHits:
        """The excluded pairs of a block of rows.

        Args:
            rows: the block.
            blocks: how the candidates are cut.
        """
        if self._is_sparse(rows):
            return _SparseHits(*self._pairs(rows), blocks)
        return _DenseHits(self.matches, rows, blocks)

    def num_hits(self) -> Tensor:
        """How many candidates are excluded from each row: [B] int64."""
        of_rows = self.matches[0].of_rows
        found = torch.zeros_like(of_rows)
        for start in range(0, len(of_rows), ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, len(of_rows)))
            if self._is_sparse(rows):
                found[rows] = torch.bincount(self._pairs(rows)[0], minlength=rows.stop - start)
            else:
                found[rows] = _any_match(self.matches, rows, slice(None)).sum(dim=1)
        return found

    def _is_sparse(self, rows: slice) -> bool:
        return all(match.is_sparse(rows) for match in self.matches)

    def _pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Each pair once."""
        found = []
        for index, match in enumerate(self.matches):
            row, candidate = match.pairs(rows)
            for earlier in self.matches[:index]:
                is_new = ~earlier.of_pairs(rows, row, candidate)
                row, candidate = row[is_new], candidate[is_new]
            found.append((row, candidate))
        return torch.cat([row for row, _ in found]), torch.cat([c for _, c in found])


class _SparseHits:
    def __init__(self, row: Tensor, candidate: Tensor, blocks: list[slice]) -> None:
        self._blocks = blocks
        # One number a pair: NumPy sorts numbers several times faster than torch, which also
        # tells where each one came from.
        bits = int(row.max()).bit_length() if len(row) else 0
        pairs = (candidate << bits) | row
        if len(blocks) > 1:
            pairs = torch.from_numpy(np.sort(pairs.numpy()))
        self._row, self._candidate = pairs & ((1 << bits) - 1), pairs >> bits
        self._stops = [len(pairs)]
        if len(blocks) > 1:
            stops = torch.tensor([block.stop << bits for block in blocks])
            self._stops = torch.searchsorted(pairs, stops).tolist()

    def mask(self, tile: Tensor, block: int) -> None:
        """See ``RowHits``."""
        mine = slice(self._stops[block - 1] if block else 0, self._stops[block])
        if mine.start < mine.stop:
            columns = self._candidate[mine] - self._blocks[block].start
            tile.view(-1)[self._row[mine] * tile.shape[1] + columns] = -math.inf


@dataclass(frozen=True)
class _DenseHits:
    matches: tuple[IdMatch, ...]
    rows: slice
    blocks: list[slice]

    def mask(self, tile: Tensor, block: int) -> None:
        """See ``RowHits``."""
        columns = self.blocks[block]
        compared = tuple(match for match in self.matches if match.of_candidates is not None)
        if compared:
            tile.masked_fill_(_any_match(compared, self.rows, columns), -math.inf)
        for match in self.matches:
            if match.of_candidates is None:
                _mask_one(tile, match.of_rows[self.rows] - columns.start)


def _mask_one(tile: Tensor, columns: Tensor) -> None:
    """Set each row's entry at its column to -inf, where the column lies in the tile."""
    inside = (columns >= 0) & (columns < tile.shape[1])
    # Without a branch on the data: a row that has no such column writes back what it read.
    place = columns.clamp(0, tile.shape[1] - 1)[:, None]
    kept = tile.gather(1, place)
    tile.scatter_(1, place, kept.masked_fill_(inside[:, None], -math.inf))


def _any_match(matches: tuple[IdMatch, ...], rows: slice, columns: slice) -> Tensor:
    found = matches[0].of_tile(rows, columns)
    for match in matches[1:]:
        found = found | match.of_tile(rows, columns)
    return found
