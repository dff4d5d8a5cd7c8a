"""The scores of rows against candidates, a tile at a time, and the gradients of such tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from candid.losses.blockwise.accidental_hits import RowHits
from candid.losses.blockwise.tile_pass import make_tile_pass

Precision = Literal["float32", "bfloat16"]
"""Of the matrix products; sums and exponentials are float32 at least in either case."""


@dataclass(frozen=True)
class TileSizes:
    """How scores are cut.

    Attributes:
        rows: in a tile, at most.
        scores: in a tile, about: few enough to stay in the caches of a CPU, enough to fill a GPU.
        columns: in a tile, at most.
        kept_bytes: for all the tiles of a block of rows, to keep them until the row's log-sum is
            known; with fewer than ``kept_rows`` rows in a block they are made again instead.
        kept_rows: see there.
        kept_rows_narrow: the same for bfloat16 products, which are cheaper to make again.
    """

    rows: int
    scores: int
    columns: int
    kept_bytes: int
    kept_rows: int
    kept_rows_narrow: int


SIZES = {
    "cpu": TileSizes(
        rows=768,
        scores=2**21,
        columns=4096,
        kept_bytes=36 * 2**20,
        kept_rows=48,
        kept_rows_narrow=144,
    ),
    "cuda": TileSizes(
        rows=2**14,
        scores=2**26,
        columns=8192,
        kept_bytes=2**29,
        kept_rows=2**10,
        kept_rows_narrow=2**10,
    ),
}
"""By type of device; others are taken for "cuda"."""


@dataclass(frozen=True)
class PassedTile:
    """A tile after its pass; see ``TilePass``.

    Attributes:
        rows: which rows.
        columns: which candidates.
        left: [rows, columns] narrow, exp(score - shift - reference).
        reference: [rows].
        log_sum: [rows].
    """

    rows: slice
    columns: slice
    left: Tensor
    reference: Tensor
    log_sum: Tensor


class Tiles:
    """Scores of B rows against N candidates, one tile at a time.

    Args:
        query: [B, D] float32 or float64.
        vectors: [N, D] of the candidates, of the same dtype.
        shift: [N], subtracted from the scores, of the same dtype; or None.
        precision: of the matrix products.

    Attributes:
        wide: dtype of sums and exponentials.
        narrow: dtype of the matrix products.
        query_wide: [B, D].
        vectors_wide: [N, D].
        row_blocks: slices that cut the rows.
        column_blocks: slices that cut the candidates.
        keeps: whether there is room for all the tiles of a block of rows.
    """

    def __init__(
        self, query: Tensor, vectors: Tensor, shift: Tensor | None, precision: Precision
    ) -> None:
        num_rows, num_candidates = len(query), len(vectors)
        sizes = SIZES.get(query.device.type, SIZES["cuda"])
        self.wide = query.dtype
        self.narrow = torch.bfloat16 if precision == "bfloat16" else self.wide
        self.query_wide, self.vectors_wide = query.detach(), vectors.detach()
        self._shift = shift
        row_bytes = max(1, num_candidates * self.narrow.itemsize)
        kept_rows = sizes.kept_bytes // row_bytes
        is_narrow = self.narrow != self.wide
        fewest = sizes.kept_rows_narrow if is_narrow else sizes.kept_rows
        self.keeps = kept_rows >= min(fewest, num_rows)
        rows = max(1, min(sizes.rows, kept_rows if self.keeps else num_rows, num_rows))
        columns = max(1, min(sizes.columns, sizes.scores // rows))
        self.row_blocks = list(_blocks(num_rows, rows))
        self.column_blocks = list(_blocks(num_candidates, columns))
        self._largest = _longest(self.row_blocks) * _longest(self.column_blocks)
        self._scratch = query.new_empty(0, dtype=self.narrow)
        # Each block of rows reads all the vectors twice.
        room = sizes.kept_bytes if len(self.row_blocks) > 1 else 0
        self._copies = is_narrow and num_candidates * query.shape[1] * self.narrow.itemsize <= room
        size = num_rows * num_candidates
        self._pass = make_tile_pass(self._scratch, self.wide, self._largest, size)

    # Made when it is first used: after the gradients, which outlive it.
    @cached_property
    def query(self) -> Tensor:
        """[B, D] narrow."""
        return self.query_wide.to(self.narrow)

    def vectors(self, columns: slice) -> Tensor:
        """[columns, D] narrow; of a large catalog made for each tile, to hold no copy of all."""
        if self._copies:
            return self._copy[columns]
        return self.vectors_wide[columns].to(self.narrow)

    @cached_property
    def _copy(self) -> Tensor:
        return self.vectors_wide.to(self.narrow)

    def passed(
        self, rows: slice, block: int, accidental_hits: RowHits, *, keep: int | None
    ) -> PassedTile:
        """Score one tile and take its softmax.

        Args:
            rows: which rows.
            block: which of ``column_blocks``.
            hits: of these rows.
            keep: the buffer that holds what is left in the tile until it is used again; None
                where only the sums are wanted.
        """
        columns = self.column_blocks[block]
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        start = (keep or 0) * self._largest
        tile = self._scratch[start : start + shape[0] * shape[1]].view(shape)
        torch.mm(self.query[rows], self.vectors(columns).T, out=tile)
        accidental_hits.mask(tile, block)
        shift = None if self._shift is None else self._shift[columns]
        reference, log_sum = self._pass(tile, shift, keep is not None)
        return PassedTile(rows, columns, tile, reference, log_sum)

    def reserve(self, *, keep: bool) -> None:
        """Take the memory of the tiles, before that of the gradients and of the copies.

        In the order of their sizes, what a step takes fits into what the step before left.
        """
        held = len(self.column_blocks) if keep and self.keeps else 1
        self._scratch = self.query_wide.new_empty(held * self._largest, dtype=self.narrow)

    def passes(self, rows: slice, accidental_hits: RowHits, *, keep: bool) -> list[PassedTile]:
        """All tiles of a block of rows; the sums alone unless they are to be kept."""
        return [
            self.passed(rows, block, accidental_hits, keep=block if keep else None)
            for block in range(len(self.column_blocks))
        ]


class Gradients:
    """Sums of the gradients with respect to the query and candidate vectors of ``Tiles``.

    Args:
        tiles: what was scored.
        of_query: whether that of the query is wanted.
        of_vectors: whether that of the candidate vectors is wanted.

    Attributes:
        query: [B, D], or None.
        vectors: [N, D], or None.
    """

    def __init__(self, tiles: Tiles, *, of_query: bool, of_vectors: bool) -> None:
        self._tiles = tiles
        self.query = torch.zeros_like(tiles.query_wide) if of_query else None
        # The first block of rows sets what the others add to.
        new = torch.empty_like if tiles.row_blocks else torch.zeros_like
        self.vectors = new(tiles.vectors_wide) if of_vectors else None

    def add(self, tiles: Sequence[PassedTile], push: Tensor) -> None:
        """Add the parts of n tiles of some rows, ``push`` [n, rows] times what is left in each."""
        rows, pushed = tiles[0].rows, None
        if self.vectors is not None:
            # Of all tiles at once: many small operations would cost more than their numbers.
            pushed = (self._tiles.query_wide[rows] * push[:, :, None]).to(self._tiles.narrow)
        # The last one made is the one that is still in the caches.
        for number in reversed(range(len(tiles))):
            tile = tiles[number]
            if self.query is not None:
                moved = tile.left @ self._tiles.vectors(tile.columns)
                self.query[rows].addcmul_(moved, push[number, :, None])
            if pushed is not None:
                self._add_to_vectors(tile, pushed[number])

    def _add_to_vectors(self, tile: PassedTile, pushed: Tensor) -> None:
        assert self.vectors is not None
        if tile.rows.start == 0:
            self.vectors[tile.columns] = tile.left.T @ pushed
        elif self._tiles.narrow == self._tiles.wide:
            self.vectors[tile.columns].addmm_(tile.left.T, pushed)
        else:
            self.vectors[tile.columns].add_(tile.left.T @ pushed)

    def pull(self, positive_rows: Tensor, pull: Tensor) -> None:
        """Subtract the part of positives that are candidates, ``pull`` [B] times their vectors."""
        tiles = self._tiles
        if self.query is not None:
            self.query.addcmul_(tiles.vectors_wide[positive_rows], pull[:, None], value=-1)
        if self.vectors is not None:
            pulled = tiles.query_wide * pull[:, None]
            self.vectors.index_add_(0, positive_rows, pulled, alpha=-1)


def _blocks(length: int, size: int) -> Iterator[slice]:
    """Cut 0..length into the fewest slices of at most ``size``, equal to within one."""
    count = -(-length // size)
    for block in range(count):
        yield slice(block * length // count, (block + 1) * length // count)


def _longest(blocks: list[slice]) -> int:
    return max((block.stop - block.start for block in blocks), default=0)
