"""The full softmax without ever holding the [B, V] scores.

Scores are made tile by tile (rows × items) in one scratch buffer that stays in the cache and
turned into the tile's own softmax, in place. What the tiles say of a row is joined by their
log-sums: an item's share of the row is its share of the tile times exp(log-sum of the tile -
log Z'), a factor per row, so that no tile is touched again to be renormalised.

Gradients need the shares once more. With several tiles a row they are made again in the
backward pass. With one tile a row (a catalog of a few thousand items) they are spent while
they are there, for a gradient of 1 on every row's loss, and the backward pass of a mean or a
sum over the rows only scales the result: three matrix products in all instead of four.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Precision = Literal["float32", "bfloat16"]
"""Of the matrix products; sums and exponentials are float32 at least in either case."""

ONE_TILE_ITEMS = 8192
"""Up to this many items a row's scores are one tile."""
TILE_ITEMS = 2000
"""Width of a tile otherwise; a power of two would collide in the cache."""
TILE_SCORES = {"cpu": 2**20, "cuda": 2**26}
"""Scores in a tile: on a CPU few enough to stay in its caches, on a GPU enough to fill it."""


def blockwise_softmax(
    query: Tensor, items: Tensor, positive_ids: Tensor, precision: Precision = "float32"
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the positives, and log Z' of the other items.

    Args:
        query: [B, D] float32 or float64.
        items: [V, D], of the same dtype.
        positive_ids: [B] int64.
        precision: of the matrix products.

    Returns:
        loss and log_z, [B] each, of the same dtype, both differentiable once in query and
        items; where V is 1, log_z is -inf, loss 0 and both gradients 0.
    """
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _BlockwiseSoftmax.apply)
    return apply(query, items, positive_ids, precision)


class _BlockwiseSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, items: Tensor, positive_ids: Tensor, precision: Precision
    ) -> tuple[Tensor, Tensor]:
        tiles = Tiles(query, items, positive_ids, precision)
        positive = (query * items[positive_ids]).sum(dim=1)
        spends = any(ctx.needs_input_grad) and len(tiles.item_blocks) == 1
        unit = Gradients(tiles) if spends else None
        for rows in tiles.row_blocks:
            for block, columns in enumerate(tiles.item_blocks):
                shares, log_sum = tiles.shares(rows, columns)
                tiles.log_sums[block, rows] = log_sum
                if unit is not None:
                    unit.add(shares, rows, columns, torch.sigmoid(log_sum - positive[rows]))
        log_z = tiles.log_sums.logsumexp(dim=0)
        gap = log_z - positive
        weight = torch.sigmoid(gap)
        unit_grads = () if unit is None else unit.finish(weight)
        ctx.save_for_backward(
            query, items, positive_ids, tiles.log_sums, log_z, weight, *unit_grads
        )
        ctx.precision = precision
        ctx.set_materialize_grads(False)
        return torch.logaddexp(torch.zeros_like(gap), gap), log_z

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_log_z: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        query, items, positive_ids, log_sums, log_z, weight, *unit_grads = ctx.saved_tensors
        if unit_grads and grad_log_z is None and grad_loss is not None and _is_uniform(grad_loss):
            return unit_grads[0] * grad_loss[0], unit_grads[1] * grad_loss[0], None, None
        zero = torch.zeros_like(weight)
        pull = zero if grad_loss is None else weight * grad_loss
        push = pull if grad_log_z is None else pull + grad_log_z
        # A row without other items (V = 1) has no shares to scale.
        push = torch.where(log_z.isneginf(), zero, push)
        tiles = Tiles(query, items, positive_ids, ctx.precision)
        gradients = Gradients(tiles)
        for rows in tiles.row_blocks:
            for block, columns in enumerate(tiles.item_blocks):
                shares, _ = tiles.shares(rows, columns)
                factor = torch.exp(log_sums[block, rows] - log_z[rows])
                gradients.add(shares, rows, columns, push[rows] * factor)
        return *gradients.finish(pull), None, None


class Tiles:
    """The scores of B rows against V items, one tile at a time.

    Args:
        query: [B, D].
        items: [V, D].
        positive_ids: [B] int64, the item that is left out of each row.
        precision: of the matrix products.

    Attributes:
        wide: dtype of sums and exponentials.
        narrow: dtype of the matrix products.
        row_blocks: slices that cut the rows.
        item_blocks: slices that cut the catalog, of two items at least: a tile always holds
            an item that is not the positive. None where V is 1.
        log_sums: [blocks, B], for the caller to fill: logsumexp of each tile of a row.
    """

    def __init__(
        self, query: Tensor, items: Tensor, positive_ids: Tensor, precision: Precision
    ) -> None:
        num_rows, num_items = len(query), len(items)
        width = num_items if num_items <= ONE_TILE_ITEMS else TILE_ITEMS
        scores = TILE_SCORES.get(query.device.type, TILE_SCORES["cuda"])
        self.wide = query.dtype
        self.narrow = torch.bfloat16 if precision == "bfloat16" else self.wide
        self.query_wide, self.items_wide = query.detach(), items.detach()
        self.query = self.query_wide.to(self.narrow)
        self.items = self.items_wide.to(self.narrow)
        self.positive_ids = positive_ids
        self.item_blocks = list(_blocks(num_items, width)) if num_items > 1 else []
        self.row_blocks = list(_blocks(num_rows, max(64, scores // width)))
        self.log_sums = query.new_full((max(1, len(self.item_blocks)), num_rows), -math.inf)
        size = _longest(self.row_blocks) * _longest(self.item_blocks)
        self._scratch = query.new_empty(size, dtype=self.wide)
        self._narrow_scratch = self._scratch
        if self.narrow != self.wide:
            self._narrow_scratch = query.new_empty(size, dtype=self.narrow)

    def shares(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Softmax of one tile without the positives.

        Returns:
            [rows, columns] in the narrow dtype, overwritten by the next call, and [rows],
            the logsumexp of the tile.
        """
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        tile = self._scratch[: shape[0] * shape[1]].view(shape)
        narrow = self._narrow_scratch[: shape[0] * shape[1]].view(shape)
        torch.mm(self.query[rows], self.items[columns].T, out=narrow)
        if tile.dtype != narrow.dtype:
            tile.copy_(narrow)
        _mask(tile, self.positive_ids[rows] - columns.start)
        highest = tile.amax(dim=1)
        # torch's softmax kernel is faster than its exp alone, and the largest share tells
        # the sum: exp(highest) / sum.
        torch.softmax(tile, dim=1, out=tile)
        log_sum = highest - tile.amax(dim=1).log()
        if tile.dtype != narrow.dtype:
            narrow.copy_(tile)
        return narrow, log_sum


class Gradients:
    """Sums of the gradients with respect to the query and item vectors of ``Tiles``."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles
        self._query = torch.zeros_like(tiles.query_wide)
        self._items = torch.zeros_like(tiles.items_wide)

    def add(self, shares: Tensor, rows: slice, columns: slice, push: Tensor) -> None:
        """Add the part of one tile, ``push`` [rows] times its shares."""
        tiles = self._tiles
        pushed = (tiles.query_wide[rows] * push[:, None]).to(tiles.narrow)
        self._query[rows].addcmul_(shares @ tiles.items[columns], push[:, None])
        if tiles.narrow == tiles.wide:
            self._items[columns].addmm_(shares.T, pushed)
        else:
            self._items[columns].add_(shares.T @ pushed)

    def finish(self, pull: Tensor) -> tuple[Tensor, Tensor]:
        """Subtract the positives' part, ``pull`` [B], and return both gradients."""
        tiles = self._tiles
        self._query.addcmul_(tiles.items_wide[tiles.positive_ids], pull[:, None], value=-1)
        self._items.index_add_(0, tiles.positive_ids, tiles.query_wide * pull[:, None], alpha=-1)
        return self._query, self._items


def _mask(tile: Tensor, columns: Tensor) -> None:
    """Set each row's entry at its column to -inf, where the column lies in the tile."""
    inside = (columns >= 0) & (columns < tile.shape[1])
    # Without a branch on the data: a row that has no such column writes back what it read.
    place = columns.clamp(0, tile.shape[1] - 1)[:, None]
    kept = tile.gather(1, place)
    tile.scatter_(1, place, kept.masked_fill_(inside[:, None], -math.inf))


def _is_uniform(grad: Tensor) -> bool:
    """Whether all rows have one gradient, as far as it is known without synchronising."""
    if len(grad) == 0:
        return False
    if grad.stride(0) == 0 or len(grad) == 1:
        return True
    return grad.device.type == "cpu" and bool((grad == grad[0]).all())


def _blocks(length: int, size: int) -> Iterator[slice]:
    """Cut 0..length into the fewest slices of at most ``size``, equal to within one."""
    count = -(-length // size)
    for block in range(count):
        yield slice(block * length // count, (block + 1) * length // count)


def _longest(blocks: list[slice]) -> int:
    return max((block.stop - block.start for block in blocks), default=0)
