"""The scores of rows against candidates, one tile at a time, and the gradients of such tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from candid.losses.blockwise.accidental_hits import AccidentalHits, RowHits
from candid.losses.blockwise.count_shift import RowCountTensors
from candid.losses.blockwise.tile_pass import (
    NativeTilePass,
    TilePass,
    TorchTilePass,
    make_tile_pass,
)

Precision = Literal["float32", "bfloat16"]
"""Dtype of the matrix products; sums and exponentials are at least float32 in either case."""


class TileShift(Protocol):
    """The part of the shift that differs between rows."""

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Return what to subtract from the scores of a tile [rows, columns]."""
        ...

    def counts(self, columns: slice) -> RowCountTensors | None:
        """Return float32 counts whose log is the shift; None where it has another form."""
        ...


@dataclass(frozen=True)
class TileSizes:
    """Sizes of tiles on a type of device.

    Attributes:
        rows: most rows of a tile.
        scores: approximate number of scores of a tile: few enough to stay in the caches of a CPU,
            enough to fill a GPU.
        columns: most columns of a tile.
        cache_bytes: memory that caches all tiles of a block of rows until the log-sums of the
            rows are known.
        min_cached_rows: fewest rows of a block whose tiles are cached; tiles of smaller blocks are
            recomputed.
        min_cached_rows_narrow: the same for bfloat16 products, which are cheaper to recompute.
    """

    rows: int
    scores: int
    columns: int
    cache_bytes: int
    min_cached_rows: int
    min_cached_rows_narrow: int


SIZES = {
    "cpu": TileSizes(
        rows=768,
        scores=2**21,
        columns=4096,
        cache_bytes=36 * 2**20,
        min_cached_rows=48,
        min_cached_rows_narrow=144,
    ),
    "cuda": TileSizes(
        rows=2**14,
        scores=2**26,
        columns=8192,
        cache_bytes=2**29,
        min_cached_rows=2**10,
        min_cached_rows_narrow=2**10,
    ),
}
"""By type of device; other types use those of "cuda"."""


@dataclass(frozen=True)
class SoftmaxTile:
    """A tile of exponentials; see ``TilePass``.

    Attributes:
        rows: which rows.
        columns: which candidates.
        exp_scores: [rows, columns] narrow, exp(score - shift - reference).
        reference: [rows].
        log_sum: [rows], log of the sum of exp(score - shift).
    """

    rows: slice
    columns: slice
    exp_scores: Tensor
    reference: Tensor
    log_sum: Tensor


class Tiles:
    """Scores of B rows against N candidates, one tile at a time.

    Args:
        query: [B, D] float32 or float64.
        vectors: [N, D] of the candidates, of the same dtype.
        accidental_hits: which candidates are not negatives of which rows.
        shift: [N], subtracted from the scores, of the same dtype; None for 0.
        row_shift: [B], subtracted from all scores of a row by the callers; None for 0.
        tile_shift: subtracted from the scores of each tile, finite; None for 0.
        precision: dtype of the matrix products.

    Attributes:
        wide: dtype of sums and exponentials.
        narrow: dtype of the matrix products.
        query_wide: [B, D].
        vectors_wide: [N, D].
        row_shift: as given.
        row_blocks: slices that cut the rows.
        column_blocks: slices that cut the candidates.
        fits_cache: whether there is room for all the tiles of a block of rows.
    """

    def __init__(
        self,
        query: Tensor,
        vectors: Tensor,
        accidental_hits: AccidentalHits,
        shift: Tensor | None,
        row_shift: Tensor | None,
        tile_shift: TileShift | None,
        precision: Precision,
    ) -> None:
        num_rows, num_candidates = len(query), len(vectors)
        sizes = SIZES.get(query.device.type, SIZES["cuda"])
        self.wide = query.dtype
        self.narrow = torch.bfloat16 if precision == "bfloat16" else self.wide
        self.query_wide, self.vectors_wide = query.detach(), vectors.detach()
        self.row_shift = row_shift
        self._accidental_hits = accidental_hits
        self._shift = shift
        self._tile_shift = tile_shift
        row_bytes = max(1, num_candidates * self.narrow.itemsize)
        cached_rows = sizes.cache_bytes // row_bytes
        is_narrow = self.narrow != self.wide
        min_rows = sizes.min_cached_rows_narrow if is_narrow else sizes.min_cached_rows
        self.fits_cache = cached_rows >= min(min_rows, num_rows)
        rows = max(1, min(sizes.rows, cached_rows if self.fits_cache else num_rows, num_rows))
        columns = max(1, min(sizes.columns, sizes.scores // rows))
        self.row_blocks = list(_blocks(num_rows, rows))
        self.column_blocks = list(_blocks(num_candidates, columns))
        self._largest = _longest(self.row_blocks) * _longest(self.column_blocks)
        self._scratch = query.new_empty(0, dtype=self.narrow)
        # Each block of rows reads all the vectors twice.
        room = sizes.cache_bytes if len(self.row_blocks) > 1 else 0
        self._copies = is_narrow and num_candidates * query.shape[1] * self.narrow.itemsize <= room
        like, size = self._scratch, num_rows * num_candidates
        if tile_shift is not None and is_narrow and tile_shift.counts(slice(0)) is None:
            # The native kernel takes one shift for all rows of a narrow tile.
            self._pass: TilePass = TorchTilePass(like, self.wide, self._largest)
        else:
            self._pass = make_tile_pass(like, self.wide, self._largest, size, accidental_hits)

    # Converted on first use: allocated after the gradients, which live longer.
    @cached_property
    def query(self) -> Tensor:
        """[B, D] narrow."""
        return self.query_wide.to(self.narrow)

    def vectors(self, columns: slice) -> Tensor:
        """Return [columns, D] narrow, converted for each tile if a full copy would be too large."""
        if self._copies:
            return self._copy[columns]
        return self.vectors_wide[columns].to(self.narrow)

    @cached_property
    def _copy(self) -> Tensor:
        return self.vectors_wide.to(self.narrow)

    def row_hits(self, rows: slice) -> RowHits:
        """Return the masked pairs of a block of rows."""
        return self._accidental_hits.of_rows(rows, self.column_blocks)

    def softmax(
        self, rows: slice, block: int, row_hits: RowHits, *, buffer: int | None
    ) -> SoftmaxTile:
        """Score one tile and compute its softmax.

        Args:
            rows: which rows.
            block: index into ``column_blocks``.
            row_hits: of these rows.
            buffer: index of the buffer that holds the exponentials until it is used again; None
                where only the sums are needed.
        """
        columns = self.column_blocks[block]
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        start = (buffer or 0) * self._largest
        tile = self._scratch[start : start + shape[0] * shape[1]].view(shape)
        torch.mm(self.query[rows], self.vectors(columns).T, out=tile)
        shift = None if self._shift is None else self._shift[columns]
        counts = None
        if self._tile_shift is not None and isinstance(self._pass, NativeTilePass):
            counts = self._tile_shift.counts(columns)
        if self._tile_shift is not None and counts is None:
            of_tile = self._tile_shift(rows, columns)
            if self.narrow == self.wide:
                tile.sub_(of_tile)
            else:
                # In the wide dtype: narrow scores would be rounded once more.
                shift = of_tile if shift is None else shift + of_tile
        reference, log_sum = self._pass(tile, shift, buffer is not None, row_hits, block, counts)
        return SoftmaxTile(rows, columns, tile, reference, log_sum)

    def reserve(self, *, cache: bool) -> None:
        """Allocate the memory of the tiles, before that of the gradients and of the copies.

        Allocations in the order of their sizes reuse the memory that the previous step freed.
        """
        num_buffers = len(self.column_blocks) if cache and self.fits_cache else 1
        self._scratch = self.query_wide.new_empty(num_buffers * self._largest, dtype=self.narrow)

    def softmax_of_rows(self, rows: slice, *, cache: bool) -> list[SoftmaxTile]:
        """Return all tiles of a block of rows; only their sums are valid without ``cache``."""
        row_hits = self.row_hits(rows)
        return [
            self.softmax(rows, block, row_hits, buffer=block if cache else None)
            for block in range(len(self.column_blocks))
        ]


class Gradients:
    """Sums of the gradients with respect to the query and candidate vectors of ``Tiles``.

    Args:
        tiles: the scores.
        needs_query: whether to compute the gradient of the query.
        needs_vectors: whether to compute that of the candidate vectors.

    Attributes:
        query: [B, D], or None.
        vectors: [N, D], or None.
    """

    def __init__(self, tiles: Tiles, *, needs_query: bool, needs_vectors: bool) -> None:
        self._tiles = tiles
        self.query = torch.zeros_like(tiles.query_wide) if needs_query else None
        # The first block of rows sets the values that the others add to.
        new = torch.empty_like if tiles.row_blocks else torch.zeros_like
        self.vectors = new(tiles.vectors_wide) if needs_vectors else None

    def add(self, tiles: Sequence[SoftmaxTile], grad_scale: Tensor) -> None:
        """Add the gradients of n tiles of the same rows.

        Args:
            tiles: of one block of rows.
            grad_scale: [n, rows], factor of the exponentials of each tile and row.
        """
        rows, scaled_query = tiles[0].rows, None
        if self.vectors is not None:
            # For all tiles at once: many small operations would cost more than their arithmetic.
            scaled_query = self._tiles.query_wide[rows] * grad_scale[:, :, None]
            scaled_query = scaled_query.to(self._tiles.narrow)
        # The tile that was computed last is still in the caches.
        for number in reversed(range(len(tiles))):
            tile = tiles[number]
            if self.query is not None:
                product = tile.exp_scores @ self._tiles.vectors(tile.columns)
                self.query[rows].addcmul_(product, grad_scale[number, :, None])
            if scaled_query is not None:
                self._add_to_vectors(tile, scaled_query[number])

    def _add_to_vectors(self, tile: SoftmaxTile, scaled_query: Tensor) -> None:
        assert self.vectors is not None
        if tile.rows.start == 0:
            self.vectors[tile.columns] = tile.exp_scores.T @ scaled_query
        elif self._tiles.narrow == self._tiles.wide:
            self.vectors[tile.columns].addmm_(tile.exp_scores.T, scaled_query)
        else:
            self.vectors[tile.columns].add_(tile.exp_scores.T @ scaled_query)


def subtract_positives(
    gradients: tuple[Tensor | None, Tensor | None],
    query: Tensor,
    vectors: Tensor,
    positive_rows: Tensor,
    grad_scale: Tensor,
) -> None:
    """Subtract, in place, the gradients of positives that are among the candidates.

    Args:
        gradients: of query [B, D] and vectors [N, D]; None where not needed.
        query: [B, D].
        vectors: [N, D].
        positive_rows: [B] int64, the index of each row's positive among the candidates.
        grad_scale: [B], factor of the vectors.
    """
    grad_query, grad_vectors = gradients
    if grad_query is not None:
        grad_query.addcmul_(vectors[positive_rows], grad_scale[:, None], value=-1)
    if grad_vectors is not None:
        grad_vectors.index_add_(0, positive_rows, query * grad_scale[:, None], alpha=-1)


def _blocks(length: int, size: int) -> Iterator[slice]:
    """Cut 0..length into the fewest slices of at most ``size``, equal to within one."""
    count = -(-length // size)
    for block in range(count):
        yield slice(block * length // count, (block + 1) * length // count)


def _longest(blocks: list[slice]) -> int:
    return max((block.stop - block.start for block in blocks), default=0)
