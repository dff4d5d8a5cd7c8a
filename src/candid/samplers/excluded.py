"""Sampling from a line of probability with some items cut out."""

from __future__ import annotations

import torch
from torch import Tensor


class ExcludedIntervals:
    """Intervals cut out of a line, so that points can be drawn on the rest of it.

    Mapping a point costs O(log H). Sampling outside H excluded items therefore costs nothing
    for each item of the catalog, even where the excluded items change at every step.

    Args:
        begins: [H] ascending, the start of each interval.
        lengths: [H], the length of each; they do not overlap.
    """

    def __init__(self, begins: Tensor, lengths: Tensor) -> None:
        self._removed = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self._begins = begins - self._removed[:-1]

    def to_full_line(self, points: Tensor) -> Tensor:
        """Map points [n] of the shortened line to their positions on the full line."""
        num_passed = torch.searchsorted(self._begins, points, right=True)
        return points + self._removed[num_passed]

    def remaining_length(self, full_length: Tensor) -> Tensor:
        """Return the length [] of the shortened line for a full line of ``full_length`` []."""
        return full_length - self._removed[-1]


def union_of_ids(ids: Tensor, other_ids: Tensor) -> Tensor:
    """Return the items of both, ascending and distinct: [H] int64."""
    both: Tensor = torch.unique(torch.cat([ids.to(other_ids.device), other_ids]))
    return both
