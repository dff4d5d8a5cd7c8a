"""Log-sum-exp over the whole catalog without ever holding the [B, V] scores.

Scores are made tile by tile (rows × items) in one scratch buffer that stays in the cache,
reduced with a running maximum and sum, and made again in the backward pass, where each
tile's softmax is spent on both gradients before the next tile overwrites it.
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

TILE_ROWS = 512
TILE_ITEMS = 2048


def blockwise_log_z(
    query: Tensor, items: Tensor, positive_ids: Tensor, precision: Precision = "float32"
) -> Tensor:
    """Logsumexp over items j != positive_ids[b] of query[b]·items[j].

    Args:
        query: [B, D] float32 or float64.
        items: [V, D], of the same dtype.
        positive_ids: [B] int64, the item that is left out of each row.
        precision: of the matrix products.

    Returns:
        [B], of the same dtype, differentiable once in query and items; -inf, with gradient
        0, where V is 1.
    """
    apply = cast(Callable[..., Tensor], _BlockwiseLogZ.apply)
    return apply(query, items, positive_ids, precision)


class _BlockwiseLogZ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, items: Tensor, positive_ids: Tensor, precision: Precision
    ) -> Tensor:
        """Reduce all tiles of each block of rows."""
        tiles = Tiles(query.detach(), items.detach(), positive_ids, precision)
        log_z = tiles.log_z()
        ctx.save_for_backward(query, items, positive_ids, log_z)
        ctx.precision = precision
        return log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Make each tile's softmax again and spend it."""
        query, items, positive_ids, log_z = ctx.saved_tensors
        tiles = Tiles(query, items, positive_ids, ctx.precision)
        needs_query, needs_items = ctx.needs_input_grad[:2]
        grads = tiles.gradients(log_z, grad, needs_query=needs_query, needs_items=needs_items)
        return *grads, None, None


class Tiles:
    """The scores of B rows against V items, one tile at a time.

    Args:
        query: [B, D].
        items: [V, D].
        positive_ids: [B] int64, the item that is left out of each row.
        precision: of the matrix products.
    """

    def __init__(
        self, query: Tensor, items: Tensor, positive_ids: Tensor, precision: Precision
    ) -> None:
        self.wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.narrow = torch.bfloat16 if precision == "bfloat16" else self.wide
        self.query = query.to(self.narrow).contiguous()
        self.items = items.to(self.narrow).contiguous()
        self.positive_ids = positive_ids
        self.num_rows, self.num_items = len(query), len(items)
        size = min(TILE_ROWS, self.num_rows) * min(TILE_ITEMS, self.num_items)
        self._scratch = query.new_empty(size, dtype=self.wide)
        self._narrow_scratch = (
            self._scratch if self.narrow == self.wide else query.new_empty(size, dtype=self.narrow)
        )

    def log_z(self) -> Tensor:
        """[B], float32 or float64."""
        result = self._scratch.new_empty(self.num_rows)
        for rows in _blocks(self.num_rows, TILE_ROWS):
            result[rows] = self._log_z_of(rows)
        return result

    def gradients(
        self, log_z: Tensor, grad: Tensor, *, needs_query: bool, needs_items: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients [B, D] and [V, D] of ``(grad * log_z).sum()``."""
        # exp(-inf - -inf) would be nan: a row with no other item has only masked scores.
        log_z = log_z.masked_fill(log_z.isneginf(), 0.0)
        query_grad = torch.zeros_like(self.query, dtype=self.wide)
        items_grad = torch.zeros_like(self.items, dtype=self.wide)
        scaled_query = (self.query * grad[:, None]).to(self.narrow)
        for rows in _blocks(self.num_rows, TILE_ROWS):
            for items in _blocks(self.num_items, TILE_ITEMS):
                tile = self._scores(rows, items)
                tile.sub_(log_z[rows, None]).exp_()
                shares = self._narrowed(tile)
                if needs_query:
                    _accumulate(query_grad[rows], shares, self.items[items])
                if needs_items:
                    _accumulate(items_grad[items], shares.T, scaled_query[rows])
        query_grad *= grad[:, None]
        return query_grad if needs_query else None, items_grad if needs_items else None

    def _log_z_of(self, rows: slice) -> Tensor:
        num_rows = rows.stop - rows.start
        highest = self._scratch.new_full((num_rows,), -math.inf)
        total = self._scratch.new_zeros(num_rows)
        for items in _blocks(self.num_items, TILE_ITEMS):
            tile = self._scores(rows, items)
            new_highest = torch.maximum(highest, tile.amax(dim=1))
            # Where every score so far is -inf the shift is 0, not -inf: the sum stays 0.
            shift = new_highest.masked_fill(new_highest.isneginf(), 0.0)
            total *= torch.exp(highest - shift)
            total += tile.sub_(shift[:, None]).exp_().sum(dim=1)
            highest = new_highest
        return total.log_().add_(shift)

    def _scores(self, rows: slice, items: slice) -> Tensor:
        """The scores of a tile, the positives at -inf; overwritten by the next call."""
        shape = (rows.stop - rows.start, items.stop - items.start)
        product = self._narrow_scratch[: shape[0] * shape[1]].view(shape)
        torch.mm(self.query[rows], self.items[items].T, out=product)
        tile = self._scratch[: shape[0] * shape[1]].view(shape)
        if tile.dtype != product.dtype:
            tile.copy_(product)
        columns = self.positive_ids[rows] - items.start
        inside = torch.nonzero((columns >= 0) & (columns < shape[1]))[:, 0]
        tile[inside, columns[inside]] = -math.inf
        return tile

    def _narrowed(self, tile: Tensor) -> Tensor:
        if tile.dtype == self.narrow:
            return tile
        return self._narrow_scratch[: tile.numel()].view(tile.shape).copy_(tile)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, float32 totals of bfloat16 products included."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
