"""The decay of the running mean of the weights, over one step and over many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DELAY = 9
"""Step t (from 1) keeps at most t / (t + 9) of the mean, so that the random start fades soon."""


@dataclass(frozen=True, slots=True)
class MeanDecay:
    """Step t of a running mean: mean ← k·mean + (1 - k)·weights, k = min(largest, t / (t + 9)).

    Attributes:
        largest: in [0, 1): the mean covers about 1 / (1 - largest) steps in the end.
    """

    largest: float

    def at(self, step: int) -> float:
        """Return the share of the mean that step ``step`` (from 1) keeps."""
        return min(self.largest, step / (step + _DELAY))

    def kept(self, since: Tensor, step: int) -> Tensor:
        """Return the share of the mean that all steps after ``since`` keep together.

        Args:
            since: [n] integers, at most ``step``.
            step: the last of the steps.

        Returns:
            [n], float64: the product of ``at(t)`` for since < t <= step; 1 without such a step.
        """
        turn = int(_DELAY * self.largest / (1 - self.largest))  # from here on ``largest`` is less
        first = since.clamp(max=turn).double()
        product = self.largest ** (step - since).clamp(max=max(step - turn, 0)).double()
        # The product of t / (t + 9) telescopes.
        for shift in range(1, _DELAY + 1):
            product *= (first + shift) / (min(step, turn) + shift)
        return product

    def finished(self, mean: Tensor, weights: Tensor, since: Tensor, step: int) -> Tensor:
        """Return a mean after steps in which its weights stayed as they were.

        Args:
            mean: [n, D] after step ``since`` of each row.
            weights: [n, D], of any dtype.
            since: [n] integers, at most ``step``.
            step: the last of the steps.
        """
        share = (1 - self.kept(since, step)).to(mean.dtype)
        return torch.lerp(mean, weights.to(mean.dtype), share[:, None])
