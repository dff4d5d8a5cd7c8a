"""Masks of candidates that are not negatives of a row, from ids.

On a CPU each row has a range of the candidates in the order of their ids, found once. The native
kernel reads these lists; torch's operations get the masked pairs of one block of rows at a time. On
an accelerator, where the number of pairs would force a synchronisation, the ids of a tile are
compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from candid.losses.blockwise.row_list import RowList
from candid.losses.blockwise.triton_softmax import count_masked

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

    @cached_property
    def row_list(self) -> RowList:
        """The matching candidates of each row."""
        if self.of_candidates is None:
            return RowList(self.of_rows, self.of_rows + 1, None)
        first, stop = self._ranges(self.of_rows)
        return RowList(first, stop, self._sorted[1])

    @cached_property
    def count(self) -> Tensor:
        """[B] int64, how many candidates match each row."""
        return self.row_list.stop - self.row_list.first

    def and_also(self, other: IdMatch) -> IdMatch:
        """Return the match of both ids."""
        assert self.of_candidates is not None
        assert other.of_candidates is not None
        # The first position of an id in sorted order stands for the id, in each match.
        size = len(self.of_candidates)
        of_candidates = self._ranges(self.of_candidates)[0] * size
        of_candidates += other._ranges(other.of_candidates)[0]
        if self._is_within and other._is_within:
            return IdMatch(of_candidates, of_candidates)
        of_rows = self.row_list.first * size + other.row_list.first
        return IdMatch(
            of_rows.masked_fill_((self.count == 0) | (other.count == 0), -1), of_candidates
        )

    @property
    def _is_within(self) -> bool:
        return self.of_rows is self.of_candidates

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The candidates' ids in ascending order, and the candidates in this order."""
        assert self.of_candidates is not None
        order = torch.from_numpy(np.argsort(self.of_candidates.numpy(), kind="stable"))
        return self.of_candidates[order], order

    def _ranges(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range of each id in the sorted ids of the candidates: start and end."""
        if ids is self.of_candidates:
            return self._ranges_of_candidates
        ordered = self._sorted[0]
        return torch.searchsorted(ordered, ids), torch.searchsorted(ordered, ids, right=True)

    @cached_property
    def _ranges_of_candidates(self) -> tuple[Tensor, Tensor]:
        ordered, order = self._sorted
        begins = torch.ones(len(ordered) + 1, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=begins[1:-1])
        bounds = begins.nonzero()[:, 0]
        run = torch.empty_like(order)
        run[order] = begins[:-1].cumsum(0) - 1
        return bounds[run], bounds[run + 1]

    def is_sparse(self, rows: slice) -> bool:
        """Return whether ``pairs`` is available (CPU only) and its result is short."""
        if self.of_rows.device.type != "cpu" or self.of_candidates is None:
            return self.of_rows.device.type == "cpu"
        count = self.count[rows]
        return int(count.sum()) * DENSE_SHARE <= len(count) * len(self.of_candidates)

    def pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the matching pairs: rows, counted from the start of the block, and candidates."""
        row, entries = self.row_list.pairs(rows)
        return row, self.row_list.candidates_of(entries)

    def of_pairs(self, rows: slice, row: Tensor, candidate: Tensor) -> Tensor:
        """Return [pairs] bool, whether each pair matches."""
        ids = candidate if self.of_candidates is None else self.of_candidates[candidate]
        return self.of_rows[rows][row] == ids

    def of_tile(self, rows: slice, columns: slice) -> Tensor:
        """Return [rows, columns] bool, whether each pair matches."""
        assert self.of_candidates is not None
        return self.of_rows[rows, None] == self.of_candidates[columns]


class AccidentalHits:
    """Pairs of a row and a candidate that is not a negative of it, found by equal ids.

    Args:
        matches: at least one, over the same rows and candidates.
        changed: candidates that stand for several samples, some of which are not negatives of a
            row: the change of their log weight. On a CPU only.
    """

    def __init__(self, *matches: IdMatch, changed: RowList | None = None) -> None:
        self.matches = matches
        self.changed = changed

    @property
    def row_lists(self) -> list[RowList]:
        """All changes of scores, by row: on a CPU only."""
        lists = [match.row_list for match in self.matches]
        return lists if self.changed is None else [*lists, self.changed]

    def of_rows(self, rows: slice, blocks: list[slice]) -> RowHits:
        """Return the masked and changed pairs of a block of rows.

        Args:
            rows: the block.
            blocks: slices that cut the candidates.
        """
        return RowHits(self, rows, blocks)

    def masked_of_rows(self, rows: slice, blocks: list[slice]) -> _MaskedPairs:
        """Return the pairs of a block of rows that ``matches`` mask."""
        if self._is_sparse(rows):
            return _SparseHits(*self._pairs(rows), blocks)
        return _DenseHits(self.matches, rows, blocks)

    def num_hits(self) -> Tensor:
        """Count the masked candidates of each row, without ``changed``: [B] int64."""
        of_rows = self.matches[0].of_rows
        is_cpu = of_rows.device.type == "cpu"
        if is_cpu and len(self.matches) == 1:
            return self.matches[0].count
        if is_cpu and len(self.matches) == 2:
            first, second = self.matches
            return first.count + second.count - first.and_also(second).count
        counted = count_masked([(match.of_rows, match.of_candidates) for match in self.matches])
        if counted is not None:
            return counted
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


class RowHits:
    """The pairs of a block of rows whose scores are masked or changed, found on first use.

    Args:
        hits: of all rows.
        rows: the block.
        blocks: slices that cut the candidates.
    """

    def __init__(self, hits: AccidentalHits, rows: slice, blocks: list[slice]) -> None:
        self._hits = hits
        self._rows = rows
        self._blocks = blocks

    def start(self, block: int) -> tuple[int, int]:
        """Return the first row, and the first candidate of a block of columns."""
        return self._rows.start, self._blocks[block].start

    def mask(self, tile: Tensor, block: int) -> None:
        """Set the masked scores of a tile [rows, columns] to -inf; block: index of the columns."""
        self._masked.mask(tile, block)

    def change(self, tile: Tensor, block: int) -> None:
        """Add the changes to the scores of a tile [rows, columns]."""
        if self._changed is None:
            return
        row, candidates, change = self._changed
        columns = self._blocks[block]
        is_inside = (candidates >= columns.start) & (candidates < columns.stop)
        position = row[is_inside] * tile.shape[1] + candidates[is_inside] - columns.start
        tile.view(-1).index_add_(0, position, change[is_inside].to(tile.dtype))

    @cached_property
    def _masked(self) -> _MaskedPairs:
        return self._hits.masked_of_rows(self._rows, self._blocks)

    @cached_property
    def _changed(self) -> tuple[Tensor, Tensor, Tensor] | None:
        changed = self._hits.changed
        if changed is None or changed.change is None:
            return None
        row, entries = changed.pairs(self._rows)
        return row, changed.candidates_of(entries), changed.change[entries]


class _MaskedPairs(Protocol):
    def mask(self, tile: Tensor, block: int) -> None:
        """Set the masked scores of a tile [rows, columns] to -inf; block: index of the columns."""
        ...


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
