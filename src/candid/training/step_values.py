"""Values of training steps: the mean loss of a batch, and rows per second."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class RowRate:
    """Rows per second since its construction."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._rows = 0

    def add(self, rows: int) -> None:
        """Count ``rows`` more."""
        self._rows += rows

    def rate(self) -> float:
        """Return rows per second so far."""
        return round(self._rows / max(time.perf_counter() - self._started, 1e-9), 1)


def weighted_mean(loss: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean loss [] of rows [B]; weights of 0 alone give 0.

    Args:
        loss: [B].
        weights: [B], or None for equal weights.
    """
    if weights is None:
        return loss.mean()
    total = weights.sum()
    return (loss * weights).sum() / torch.where(total > 0, total, 1.0)
