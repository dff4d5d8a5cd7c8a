"""The order of results as one integer key: score descending, then id ascending.

``torch.topk`` does not define the order of equal values. The keys are distinct, so every way of
selecting the largest returns the same items in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_ID = 2**31 - 1


def encode(scores: Tensor, item_ids: Tensor) -> Tensor:
    """Return keys whose descending order is (score descending, id ascending).

    Args:
        scores: [..., n] float32 without NaN.
        item_ids: int64 in -1..2^31 - 1, broadcast against ``scores``.

    Returns:
        int64, of the shape of ``scores``.
    """
    # Adding zero turns -0.0 into 0.0: the two are equal, so they must have equal bits.
    bits = (scores + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & LARGEST_ID)
    return (ordered.long() << 32) + (LARGEST_ID - item_ids)


def decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids int64 and scores float32 of keys of any shape; the id is -1 for score -inf."""
    # LARGEST_ID - id is at most 2^31 (for id -1), so it never reaches into the score's half.
    ordered = (keys >> 32).int()
    scores = (ordered ^ ((ordered >> 31) & LARGEST_ID)).view(torch.float32)
    item_ids = LARGEST_ID - (keys & 0xFFFFFFFF)
    return torch.where(scores.isneginf(), -1, item_ids), scores
