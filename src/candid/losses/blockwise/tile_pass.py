"""The softmax of a tile of scores, in place, between the matrix products.

A pass turns scores into exp(score - shift - reference), with a reference for each row, and returns
the log of the sum of exp(score - shift). For any reference, the shares of a row in a larger sum are
the tile's exponentials times exp(reference - log of that sum).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from candid.losses.blockwise.accidental_hits import AccidentalHits, RowHits
from candid.losses.blockwise.count_shift import RowCountTensors
from candid.losses.blockwise.native import MAX_COLUMNS, NativeLists, NativePass, native_pass

NATIVE_SCORES = 2**17
"""Fewest scores for which the kernel is compiled; for fewer, it saves less than it costs."""


class TilePass(Protocol):
    """A function that computes the softmax of one tile."""

    def __call__(
        self,
        scores: Tensor,
        shift: Tensor | None,
        keep: bool,
        row_hits: RowHits | None = None,
        block: int = 0,
        counts: RowCountTensors | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the exponentials in place, and the log of their sum.

        Args:
            scores: [rows, columns], contiguous, overwritten; float32, float64 or bfloat16.
            shift: [columns] float32 (float64 for float64 scores), or None for 0; inf leaves a
                candidate out. ``TorchTilePass`` also takes [rows, columns].
            keep: whether the exponentials in ``scores`` will be used.
            row_hits: pairs of these rows whose scores are masked or changed; None without any.
            block: index of the columns, for ``row_hits``.
            counts: divide the exponentials by these counts, where they are above 0. The native
                kernel only.

        Returns:
            reference [rows] and log_sum [rows], of the dtype of the shift; both -inf where every
            score of the row is -inf, and the tile then holds finite values.
        """
        ...


def make_tile_pass(
    like: Tensor,
    wide: torch.dtype,
    largest: int,
    num_scores: int,
    accidental_hits: AccidentalHits | None = None,
) -> TilePass:
    """Return the fastest pass for these scores.

    Args:
        like: a tensor with the device and dtype of the scores.
        wide: dtype of sums and exponentials.
        largest: scores in the largest tile.
        num_scores: B·N, of all tiles together.
        accidental_hits: of all rows; None without any.
    """
    if like.device.type == "cpu" and wide == torch.float32 and num_scores >= NATIVE_SCORES:
        compiled = native_pass()
        if compiled is not None:
            return NativeTilePass(compiled, accidental_hits)
    return TorchTilePass(like, wide, largest)


class NativeTilePass:
    """The pass by the native kernel, on a CPU, with float32 sums.

    Args:
        compiled: the kernel.
        accidental_hits: of all rows; None without any.
    """

    def __init__(self, compiled: NativePass, accidental_hits: AccidentalHits | None = None) -> None:
        self._compiled = compiled
        self._lists = None if accidental_hits is None else NativeLists(accidental_hits.row_lists)

    def __call__(
        self,
        scores: Tensor,
        shift: Tensor | None,
        keep: bool,
        row_hits: RowHits | None = None,
        block: int = 0,
        counts: RowCountTensors | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the exponentials in place; see ``TilePass``."""
        assert scores.is_contiguous()
        assert scores.shape[1] <= MAX_COLUMNS
        assert shift is None or shift.ndim == 1
        reference, log_sum = scores.new_empty((2, len(scores)), dtype=torch.float32).unbind()
        lists, start = (None, (0, 0)) if row_hits is None else (self._lists, row_hits.start(block))
        self._compiled(
            scores, shift, reference, log_sum, keep, lists=lists, start=start, counts=counts
        )
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

    def __call__(
        self,
        scores: Tensor,
        shift: Tensor | None,
        keep: bool,
        row_hits: RowHits | None = None,
        block: int = 0,
        counts: RowCountTensors | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the exponentials in place; see ``TilePass``."""
        assert counts is None
        if row_hits is not None:
            row_hits.mask(scores, block)
        tile = scores
        if self._wide is not None:
            tile = self._wide[: scores.numel()].view(scores.shape).copy_(scores)
        if shift is not None:
            tile.sub_(shift)
        if row_hits is not None:
            row_hits.change(tile, block)
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
