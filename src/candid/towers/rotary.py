"""Rotary positions: attention that sees how far back an item is, not where the window began.

Su et al., *RoFormer* (2021), equation 34: query and key of the token at place m are rotated
by the angles m·θ_i, so that their product depends on the places' difference alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0
"""Angles run from 1 radian a place down to 1 / BASE."""


def rotations(places: Tensor, width: int) -> Tensor:
    """Turns of query, key and value at each place.

    Args:
        places: [T] int64.
        width: D/H, of one head; even.

    Returns:
        [T, 3, 1, D/H/2] complex64; the value's are 1: it is not turned.
    """
    pairs = torch.arange(0, width, 2, device=places.device, dtype=torch.float32)
    angles = places[:, None] * BASE ** (-pairs / width)
    turned = torch.polar(torch.ones_like(angles), angles)
    return torch.stack([turned, turned, torch.ones_like(turned)], dim=1)[:, :, None]


def rotate(qkv: Tensor, turns: Tensor, num_heads: int) -> Tensor:
    """Turn the queries and keys in [T, 3·D]; worked in float32 or wider, dtype kept."""
    wide = qkv if qkv.dtype == torch.float64 else qkv.float()
    pairs = wide.view(len(qkv), 3, num_heads, -1, 2)
    turned = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    return turned.view(qkv.shape).to(qkv.dtype)
