"""The softmax of a tile of scores, in place, between the matrix products.

A pass turns scores into exp(score - shift - reference), with a reference for each row, and returns
the log of the sum of exp(score - shift). For any reference, the shares of a row in a larger sum are
the tile's exponentials times exp(reference - log of that sum).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from candid.losses.blockwise.native import MAX_COLUMNS, NativePass, native_pass

NATIVE_SCORES = 2**17
"""Fewest scores for which the kernel is compiled; for fewer, it saves less than it costs."""


class TilePass(Protocol):
    """A function that computes the softmax of one tile."""

    def __call__(self, scores: Tensor, shift: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
        """Compute the exponentials in place, and the log of their sum.

        Args:
            scores: [rows, columns], contiguous, overwritten; float32, float64 or bfloat16.
            shift: [columns] float32 (float64 for float64 scores), or None for 0; inf leaves a
                candidate out. ``TorchTilePass`` also takes [rows, columns].
            keep: whether the exponentials in ``scores`` will be used.

        Returns:
            reference [rows] and log_sum [rows], of the dtype of the shift; both -inf where every
            score of the row is -inf, and the tile then holds finite values.
        """
        ...


def make_tile_pass(like: Tensor, wide: torch.dtype, largest: int, num_scores: int) -> TilePass:
    """Return the fastest pass for these scores.

    Args:
        like: a tensor with the device and dtype of the scores.
        wide: dtype of sums and exponentials.
        largest: scores in the largest tile.
        num_scores: B·N, of all tiles together.
    """
    if like.device.type == "cpu" and wide == torch.float32 and num_scores >= NATIVE_SCORES:
        compiled = native_pass()
        if compiled is not None:
            return _NativeTilePass(compiled)
    return TorchTilePass(like, wide, largest)


class _NativeTilePass:
    def __init__(self, compiled: NativePass) -> None:
        self._compiled = compiled

    def __call__(self, scores: Tensor, shift: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
        """Compute the exponentials in place; see ``TilePass``."""
        assert scores.is_contiguous()
        assert scores.shape[1] <= MAX_COLUMNS
        reference, log_sum = scores.new_empty((2, len(scores)), dtype=torch.float32).unbind()
        self._compiled(scores, shift, reference, log_sum, keep)
        return reference, log_sum


class TorchTilePass:
    """The pass in torch operations, on any device.

    Args:
        like: a tensor with the device and dtype of the scores.
        wide: dtype of sums and exponentials.
        largest: scores in the largest tile.
    """

    def __init__(self, like: Tensor, wide: torch.dtype, largest: int) -> None:
        self._wide = None if like.dtype == wide else like.new_empty(largest, dtype=wide)

    def __call__(self, scores: Tensor, shift: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
        """Compute the exponentials in place; see ``TilePass``."""
        tile = scores
        if self._wide is not None:
            tile = self._wide[: scores.numel()].view(scores.shape).copy_(scores)
        if shift is not None:
            tile.sub_(shift)
        highest = tile.amax(dim=1)
        # The softmax of an empty row is nan: such a row gets one score, and its reference -inf
        # cancels it.
        tile[:, :1].masked_fill_(highest.isneginf()[:, None], 0.0)
        # torch's softmax kernel is faster than its exp alone, and the largest share gives the
        # sum: it is exp(highest) / sum.
        torch.softmax(tile, dim=1, out=tile)
        log_sum = highest - tile.amax(dim=1).log()
        if keep and tile is not scores:
            scores.copy_(tile)
        return log_sum, log_sum
