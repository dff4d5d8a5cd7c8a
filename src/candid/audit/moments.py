"""From sums over independent groups of draws to bias and spread with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

GROUPS = 8
"""K, independent groups of draws: every pair of them gives a cross product without noise of its
own, and leaving one out gives the standard error."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How far an estimator is from the full softmax, pooled over rows.

    Lengths are relative to that of the exact gradient with respect to the logits.

    Attributes:
        bias: ||E g - g_exact|| / ||g_exact||; negative where the cross product is, which means
            not different from 0.
        bias_error: its standard error.
        rmse: sqrt(E ||g - g_exact||²) / ||g_exact|| of one draw: bias and spread together.
        loss_bias: mean of the estimated loss minus the exact one, nats.
        loss_bias_error: its standard error.
        effective: mean effective number of candidates, (Σ w)² / Σ w².
        rows: audited rows.
        draws: draws a row, on average.
    """

    bias: float
    bias_error: float
    rmse: float
    loss_bias: float
    loss_bias_error: float
    effective: float
    rows: int
    draws: float

    def error_after(self, steps: int) -> float:
        """What is left of the relative error when the gradients of ``steps`` steps are averaged.

        sqrt(bias² + (RMSE² - bias²) / steps): noise averages out, bias does not.
        """
        bias_square = max(self.bias, 0.0) ** 2
        return math.sqrt(bias_square + max(self.rmse**2 - bias_square, 0.0) / steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to six significant digits."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Moments:
    """What the draws of Q rows came to, a mean for each of K groups of draws.

    Attributes:
        gram: [Q, K, K] float64, inner products of the groups' mean gradients.
        projection: [Q, K], inner products of them with the exact gradient.
        square: [Q, K], mean squared length of a draw's gradient.
        gap: [Q, K], mean of the loss minus the exact one.
        effective: [Q, K], mean effective number of candidates.
        exact_square: [Q], squared length of the exact gradient.
        draws: [Q], draws of all groups together.
    """

    gram: Tensor
    projection: Tensor
    square: Tensor
    gap: Tensor
    effective: Tensor
    exact_square: Tensor
    draws: Tensor

    def find(self, rows: Tensor | None = None) -> Finding:
        """Pool over all rows, or over those of a mask [Q]."""
        part = self if rows is None else self._rows(rows)
        length = float(part.exact_square.sum())
        # (m_k - g)·(m_l - g), which for k ≠ l is free of the groups' own noise.
        cross = (
            part.gram
            - part.projection[:, :, None]
            - part.projection[:, None, :]
            + part.exact_square[:, None, None]
        ).sum(dim=0)
        squared, error = _off_diagonal_mean(cross)
        spread = (part.square - 2.0 * part.projection + part.exact_square[:, None]).sum(dim=0)
        gaps = part.gap.mean(dim=0)
        # A row whose gradient is exactly 0 has nothing that could be biased.
        scale = length if length > 0 else math.inf
        squared, error = squared / scale, error / scale
        return Finding(
            bias=math.copysign(math.sqrt(abs(squared)), squared),
            bias_error=error_of_root(squared, error),
            rmse=math.sqrt(max(float(spread.mean()), 0.0) / scale),
            loss_bias=float(gaps.mean()),
            loss_bias_error=float(gaps.std() / math.sqrt(len(gaps))),
            effective=float(part.effective.mean()),
            rows=len(part.exact_square),
            draws=float(part.draws.double().mean()),
        )

    def _rows(self, mask: Tensor) -> Moments:
        return Moments(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})


def joined(parts: Sequence[Moments]) -> Moments:
    """The moments of all rows, from those of consecutive parts."""
    return Moments(
        **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Moments)}
    )


def error_of_root(squared: float, error: float) -> float:
    """Standard error of sqrt(max(squared, 0)), from that of ``squared``.

    The distance to the root one error up: half the relative error where ``squared`` is far
    from 0, the root of the error where it is not.
    """
    floor = max(squared, 0.0)
    return math.sqrt(floor + error) - math.sqrt(floor)


def _off_diagonal_mean(cross: Tensor) -> tuple[float, float]:
    """Mean over pairs of different groups, and its delete-one-group jackknife error."""
    num = len(cross)
    others = cross.sum(dim=1) - cross.diagonal()
    total = others.sum()
    # Without group i, 2·others[i] of the off-diagonal sum go.
    left = (total - 2.0 * others) / ((num - 1) * (num - 2))
    error = torch.sqrt((num - 1) / num * (left - left.mean()).square().sum())
    return float(total / (num * (num - 1))), float(error)
