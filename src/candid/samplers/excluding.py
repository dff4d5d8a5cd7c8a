"""Draws from what a head leaves: every one of them counts, however much the head takes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from candid.samplers.sampler import Sampler


@runtime_checkable
class CanExclude(Protocol):
    """A sampler that can draw from its Q without some items, renormalised."""

    def excluding(self, exact_ids: Tensor) -> Sampler:
        """The same sampler without the items [H] int64.

        Returns:
            one with as many draws, whose log expected count of the items left out is -inf; the
            sampler itself where they are all that it draws.
        """
        ...


def excluding(sampler: Sampler, exact_ids: Tensor) -> Sampler:
    """A sampler without the items of a head [H], where it can; else as it is.

    As it is, it may draw items of the head, which a loss drops: right on average over what is
    left, but a step that draws the head alone misses the tail's share.
    """
    return sampler.excluding(exact_ids) if isinstance(sampler, CanExclude) else sampler


def joined(left_out: Tensor, exact_ids: Tensor) -> Tensor:
    """The items of both, ascending, each once: [H] int64 on the device of ``head_ids``."""
    both: Tensor = torch.unique(torch.cat([left_out.to(exact_ids.device), exact_ids]))
    return both


class Gaps:
    """A line with intervals cut out: maps what is left, pushed together, back onto the line.

    A point is moved in O(log H), so that drawing outside a head costs nothing for each item of
    the catalog, whatever the head is from step to step.

    Args:
        begins: [H] ascending, where each interval begins.
        lengths: [H], how long each is; they do not overlap.
    """

    def __init__(self, begins: Tensor, lengths: Tensor) -> None:
        passed = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self.begins = begins - passed[:-1]
        self.passed = passed

    def widened(self, points: Tensor) -> Tensor:
        """Where points [n] of the line without the intervals lie on the whole line."""
        num_passed = torch.searchsorted(self.begins, points, right=True)
        return points + self.passed[num_passed]

    def remaining(self, whole: Tensor) -> Tensor:
        """Length [] of the line without the intervals, of a line of length ``whole`` []."""
        return whole - self.passed[-1]
