"""Rotary positions: attention depends on the distance of two items, not on their positions.

Su et al., *RoFormer* (2021), equation 34: query and key of the token at position m are rotated by
the angles m·θ_i, so that their product depends on the difference of positions alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0
"""Angles per position run from 1 radian down to 1 / BASE."""


def rotation_factors(positions: Tensor, width: int) -> Tensor:
    """Return the factors of query, key and value at each position.

    Args:
        positions: [T] int64.
        width: D/H, of one head; even.

    Returns:
        [T, 3, 1, D/H/2] complex64; the factors of the value are 1.
    """
    pairs = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None] * BASE ** (-pairs / width)
    factors = torch.polar(torch.ones_like(angles), angles)
    return torch.stack([factors, factors, torch.ones_like(factors)], dim=1)[:, :, None]


def rotate(qkv: Tensor, factors: Tensor, num_heads: int) -> Tensor:
    """Rotate queries and keys in [T, 3·D], in float32 or wider; the dtype stays."""
    wide = qkv if qkv.dtype == torch.float64 else qkv.float()
    pairs = wide.view(len(qkv), 3, num_heads, -1, 2)
    rotated = torch.view_as_real(torch.view_as_complex(pairs) * factors)
    return rotated.view(qkv.shape).to(qkv.dtype)
