"""Which items of a catalog a proposal can draw."""

from __future__ import annotations

import torch
from torch import Tensor

from candid.errors import ConfigError


def check_reach(log_count: Tensor) -> None:
    """Refuse a proposal by which an item can never be drawn.

    Such an item's share of the partition function is missed, however many draws there are.

    Args:
        log_count: [V] or [B, V], what ``log_count_of`` says of every item of the catalog.

    Raises:
        ConfigError: an item whose expected count is 0 (for some row); names the first.
    """
    unreachable = log_count.isneginf().view(-1, log_count.shape[-1]).any(dim=0)
    items = torch.nonzero(unreachable)
    if len(items):
        raise ConfigError(
            f"item {int(items[0])} can never be drawn, its probability is 0, as it is for "
            f"{len(items)} of {len(unreachable)} items: give a popularity proposal a floor above "
            "0, or mix it with uniform draws"
        )


def check_set_size(num_candidates: int, num_items: int) -> None:
    """Refuse a set of distinct candidates that is larger than the catalog.

    Raises:
        ConfigError: ``num_candidates`` is more than V = ``num_items``.
    """
    if num_candidates > num_items:
        raise ConfigError(
            f"num_candidates is {num_candidates}, but the catalog has {num_items} items: a set "
            "of distinct candidates cannot be larger (full_softmax compares with all of them)"
        )
