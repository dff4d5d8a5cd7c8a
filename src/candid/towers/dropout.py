"""Dropout whose mask belongs to the rows, so that a batch can be encoded in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.towers.row_noise import LEVELS, RowNoise


class Dropout(RowNoise):
    """Set each value to zero with probability ``p``, rounded to 1/65536, and scale the others.

    Args:
        p: in [0, 1).

    Raises:
        ConfigError: ``p`` outside [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {p}")
        self.p = p
        self._threshold = round(p * LEVELS)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"p={self.p}"

    @property
    def is_active(self) -> bool:
        """Whether values may be dropped: in training only."""
        return self.training and self._threshold > 0

    def scales(self, num_rows: int, width: int, device: torch.device) -> Tensor:
        """Return the factors of the values of some rows: [n, width] float32; 0 where they drop."""
        levels = self.levels(num_rows, width, device)
        # Written as float32 at once, 1 where the value stays: a conversion from bool takes four
        # times as long. A scale rounded to bfloat16 would be off by up to 0.4 %.
        scales = torch.empty(levels.shape, dtype=torch.float32, device=device)
        torch.ge(levels, self._threshold - LEVELS // 2, out=scales)
        return scales.mul_(LEVELS / (LEVELS - self._threshold))

    def forward(self, values: Tensor) -> Tensor:
        """Apply to values [n, ...] of a float dtype; return the same shape and dtype."""
        # torch.export makes a size constant that len() reads: not outside training.
        if not self.is_active or len(values) == 0:
            return values
        num_rows = len(values)
        scales = self.scales(num_rows, values.numel() // num_rows, values.device)
        return (values * scales.view(values.shape)).to(values.dtype)
