"""Dropout with a quarter of the calls of the random generator.

On CPU most of the time of dropout goes to the generator: PyTorch calls it once per value. Here one
64-bit number decides four values, 16 bits each. The distribution is the same up to rounding: the
probability is a multiple of 2^-16, and remaining values are scaled by exactly its complement.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from candid.errors import ConfigError

LEVELS = 1 << 16


class Dropout(nn.Module):
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

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"p={self.p}"

    def forward(self, values: Tensor) -> Tensor:
        """Apply to values [...] of a float dtype; return the same shape and dtype."""
        threshold = round(self.p * LEVELS)
        if not self.training or threshold == 0:
            return values
        if values.device.type != "cpu":
            return nn.functional.dropout(values, self.p)
        numbers = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        levels = numbers.view(torch.int16)[: values.numel()].view(values.shape)
        # Written as float32 at once, 1 where the value stays: a conversion from bool takes four
        # times as long. A scale rounded to bfloat16 would be off by up to 0.4 %.
        scale = torch.empty(values.shape, dtype=torch.float32)
        torch.ge(levels, threshold - LEVELS // 2, out=scale)
        scale.mul_(LEVELS / (LEVELS - threshold))
        return (values * scale).to(values.dtype)
