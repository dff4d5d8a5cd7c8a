"""Slicings: divisions of target items and of queries into named groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from candid.batches import Ints
from candid.evaluation.metrics import Floats


@dataclass(frozen=True)
class Slicing:
    """A division of items or queries into named groups.

    Attributes:
        labels: G names, in order.
        groups: [V] int64 for a slicing of items, [Q] for one of queries: the group of each.
    """

    labels: tuple[str, ...]
    groups: Ints


def by_popularity(counts: Ints | Floats, num_slices: int) -> Slicing:
    """Divide items so that each slice holds about the same share of the training targets.

    Slice 1 is the long tail, the last slice holds the few most popular items. Items with the same
    training count stay together (their position is the middle of their common share), so slices
    may be uneven, or empty, where a single count has a large share. Items that are never a target
    of training form a group of their own, "untrained".

    Args:
        counts: [V], how often training has each item as a target; expected numbers need not be
            whole.
        num_slices: at least 1.
    """
    distinct, inverse, sizes = np.unique(counts, return_inverse=True, return_counts=True)
    mass = distinct * sizes
    middle = np.cumsum(mass) - mass / 2
    position = np.floor(middle / (mass.sum() or 1) * num_slices).astype(np.int64) + 1
    position = np.where(distinct == 0, 0, np.minimum(position, num_slices))
    labels = ["untrained"]
    for number in range(1, num_slices + 1):
        members = distinct[position == number]
        bounds = f" (count {_number(members[0])} to {_number(members[-1])})" if len(members) else ""
        labels.append(f"{number}/{num_slices}{bounds}")
    return Slicing(tuple(labels), position[inverse].astype(np.int64))


def by_warmth(counts: Ints | Floats) -> Slicing:
    """Divide items, or queries by their user, into never trained ("cold") and trained ("warm").

    Args:
        counts: [V] or [Q], how often each is trained on.
    """
    return Slicing(("cold", "warm"), (counts > 0).astype(np.int64))


def by_history_length(lengths: Ints, edges: Sequence[int]) -> Slicing:
    """Divide queries by the number of interactions in their whole history.

    Args:
        lengths: [Q] int64.
        edges: ascending lengths at which a new slice begins.
    """
    bounds = [0, *edges]
    labels = [
        str(low) if low == high - 1 else f"{low}-{high - 1}"
        for low, high in zip(bounds, edges, strict=False)
    ]
    return Slicing((*labels, f"{bounds[-1]}+"), np.searchsorted(edges, lengths, side="right"))


def _number(count: float) -> str:
    """Return a count for a label; expected numbers of targets with one decimal."""
    return f"{count:.1f}".removesuffix(".0")
