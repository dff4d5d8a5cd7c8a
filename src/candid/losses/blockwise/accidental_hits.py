"""Masks of candidates that are not negatives of a row, from ids, one block at a time.

On a CPU the few masked pairs of row and candidate are looked up in sorted ids. On an accelerator,
where their number would force a synchronisation, the ids of a tile are compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

DENSE_SHARE = 16
"""Where more than one in this many pairs of a block is masked, ids are compared on a CPU too."""
ROWS_AT_ONCE = 512
"""Rows whose masked candidates are counted together."""


class IdMatch:
    """Masks each candidate in the rows that have its id.

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
        """Return whether ``pairs`` is available (CPU only) and its result is short."""
        if self.of_rows.device.type != "cpu" or self.of_candidates is None:
            return self.of_rows.device.type == "cpu"
        count = self._count[rows]
        return int(count.sum()) * DENSE_SHARE <= len(count) * len(self.of_candidates)

    def pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the matching pairs: rows, counted from the start of the block, and candidates."""
        first, count = self._first[rows], self._count[rows]
        row = torch.repeat_interleave(count)
        before = count.cumsum(0) - count
        position = torch.arange(len(row)) + (first - before)[row]
        return row, position if self._order is None else self._order[position]

    def of_pairs(self, rows: slice, row: Tensor, candidate: Tensor) -> Tensor:
        """Return [pairs] bool, whether each pair matches."""
        ids = candidate if self.of_candidates is None else self.of_candidates[candidate]
        return self.of_rows[rows][row] == ids

    def of_tile(self, rows: slice, columns: slice) -> Tensor:
        """Return [rows, columns] bool, whether each pair matches."""
        assert self.of_candidates is not None
        return self.of_rows[rows, None] == self.of_candidates[columns]


class RowHits(Protocol):
    """The masked pairs of a block of rows."""

    def mask(self, tile: Tensor, block: int) -> None:
        """Set the masked scores of a tile [rows, columns] to -inf; block: index of the columns."""
        ...


class AccidentalHits:
    """Pairs of a row and a candidate that is not a negative of it, found by equal ids.

    Args:
        matches: at least one, over the same rows and candidates.
    """

    def __init__(self, *matches: IdMatch) -> None:
        self.matches = matches

    def of_rows(self, rows: slice, blocks: list[slice]) -> RowHits:
        """Return the masked pairs of a block of rows.

        Args:
            rows: the block.
            blocks: slices that cut the candidates.
        """
        if self._is_sparse(rows):
            return _SparseHits(*self._pairs(rows), blocks)
        return _DenseHits(self.matches, rows, blocks)

    def num_hits(self) -> Tensor:
        """Count the masked candidates of each row: [B] int64."""
        of_rows = self.matches[0].of_rows
        num_hits = torch.zeros_like(of_rows)
        for start in range(0, len(of_rows), ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, len(of_rows)))
            if self._is_sparse(rows):
                num_hits[rows] = torch.bincount(self._pairs(rows)[0], minlength=rows.stop - start)
            else:
                num_hits[rows] = _any_match(self.matches, rows, slice(None)).sum(dim=1)
        return num_hits

    def _is_sparse(self, rows: slice) -> bool:
        return all(match.is_sparse(rows) for match in self.matches)

    def _pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return each masked pair once."""
        pairs = []
        for index, match in enumerate(self.matches):
            row, candidate = match.pairs(rows)
            for earlier in self.matches[:index]:
                is_new = ~earlier.of_pairs(rows, row, candidate)
                row, candidate = row[is_new], candidate[is_new]
            pairs.append((row, candidate))
        return torch.cat([row for row, _ in pairs]), torch.cat([c for _, c in pairs])


class _SparseHits:
    def __init__(self, row: Tensor, candidate: Tensor, blocks: list[slice]) -> None:
        self._blocks = blocks
        # One number per pair: NumPy sorts numbers several times faster than torch, whose sort
        # returns the order as well.
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
        """Set the masked scores of a tile [rows, columns] to -inf."""
        span = slice(self._stops[block - 1] if block else 0, self._stops[block])
        if span.start < span.stop:
            columns = self._candidate[span] - self._blocks[block].start
            tile.view(-1)[self._row[span] * tile.shape[1] + columns] = -math.inf


@dataclass(frozen=True)
class _DenseHits:
    matches: tuple[IdMatch, ...]
    rows: slice
    blocks: list[slice]

    def mask(self, tile: Tensor, block: int) -> None:
        """Set the masked scores of a tile [rows, columns] to -inf."""
        columns = self.blocks[block]
        compared = tuple(match for match in self.matches if match.of_candidates is not None)
        if compared:
            tile.masked_fill_(_any_match(compared, self.rows, columns), -math.inf)
        for match in self.matches:
            if match.of_candidates is None:
                _mask_one(tile, match.of_rows[self.rows] - columns.start)


def _mask_one(tile: Tensor, columns: Tensor) -> None:
    """Set the entry of each row at its column to -inf, where the column lies in the tile."""
    is_inside = (columns >= 0) & (columns < tile.shape[1])
    # Without a branch on the data: a row whose column lies outside writes its old value back.
    position = columns.clamp(0, tile.shape[1] - 1)[:, None]
    scores = tile.gather(1, position)
    tile.scatter_(1, position, scores.masked_fill_(is_inside[:, None], -math.inf))


def _any_match(matches: tuple[IdMatch, ...], rows: slice, columns: slice) -> Tensor:
    mask = matches[0].of_tile(rows, columns)
    for match in matches[1:]:
        mask = mask | match.of_tile(rows, columns)
    return mask
