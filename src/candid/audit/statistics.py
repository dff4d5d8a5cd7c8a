"""Statistics of an estimator: bias, RMSE and their standard errors, from independent groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

NUM_GROUPS = 8
"""K, number of independent groups of repeats. The cross product of two different groups has no
noise bias, and leaving out one group at a time gives the standard error."""


@dataclass(frozen=True, slots=True)
class EstimatorStatistics:
    """Distance of an estimator from the full softmax, pooled over rows.

    Lengths are relative to the length of the exact gradient with respect to the logits.

    Attributes:
        bias: ||E g - g_exact|| / ||g_exact||; negative if the cross product is negative, which
            means not different from 0.
        bias_error: standard error of ``bias``.
        rmse: sqrt(E ||g - g_exact||²) / ||g_exact|| of one repeat: bias and variance together.
        loss_bias: mean of the estimated loss minus the exact one, nats.
        loss_bias_error: standard error of ``loss_bias``.
        effective_sample_size: mean effective number of candidates, (Σ w)² / Σ w².
        num_rows: audited rows.
        repeats: mean number of repeats per row.
        z_mean: mean of Z' / Z, where Z is the partition function without the positive; 1 if the
            estimate of Z is unbiased. For logq with kept hits, Z' includes samples of the positive.
        z_sd: standard deviation of Z' / Z of one repeat, the root of the mean variance of a row.
    """

    bias: float
    bias_error: float
    rmse: float
    loss_bias: float
    loss_bias_error: float
    effective_sample_size: float
    num_rows: int
    repeats: float
    z_mean: float = math.nan
    z_sd: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """Return plain values, rounded to six significant digits."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class GroupMeans:
    """Means over the repeats of each of K groups, for Q rows.

    Attributes:
        gram: [Q, K, K] float64, inner products of the groups' mean gradients.
        projection: [Q, K], inner products of the groups' mean gradients with the exact gradient.
        squared_norm: [Q, K], mean squared length of a repeat's gradient.
        loss_gap: [Q, K], mean of the loss minus the exact one.
        effective_sample_size: [Q, K], mean effective number of candidates.
        z_ratio: [Q, K], mean of Z' / Z.
        z_square: [Q, K], mean of (Z' / Z)².
        exact_squared_norm: [Q], squared length of the exact gradient.
        repeats: [Q], repeats of all groups together.
    """

    gram: Tensor
    projection: Tensor
    squared_norm: Tensor
    loss_gap: Tensor
    effective_sample_size: Tensor
    z_ratio: Tensor
    z_square: Tensor
    exact_squared_norm: Tensor
    repeats: Tensor

    def statistics(self, mask: Tensor | None = None) -> EstimatorStatistics:
        """Pool over all rows, or over the rows of a mask [Q]."""
        part = self if mask is None else self._rows(mask)
        exact_square = float(part.exact_squared_norm.sum())
        # (m_k - g)·(m_l - g), for k ≠ l without the noise of either group.
        cross = (
            part.gram
            - part.projection[:, :, None]
            - part.projection[:, None, :]
            + part.exact_squared_norm[:, None, None]
        ).sum(dim=0)
        squared, error = (float(value) for value in off_diagonal_mean(cross))
        squared_error = (
            part.squared_norm - 2.0 * part.projection + part.exact_squared_norm[:, None]
        ).sum(dim=0)
        gaps = part.loss_gap.mean(dim=0)
        z_mean = part.z_ratio.mean(dim=1)
        z_variance = (part.z_square.mean(dim=1) - z_mean.square()) * (
            part.repeats / (part.repeats - 1)
        )
        # If every exact gradient is 0, no estimate can be biased.
        scale = exact_square if exact_square > 0 else math.inf
        squared, error = squared / scale, error / scale
        return EstimatorStatistics(
            bias=math.copysign(math.sqrt(abs(squared)), squared),
            bias_error=error_of_root(squared, error),
            rmse=math.sqrt(max(float(squared_error.mean()), 0.0) / scale),
            loss_bias=float(gaps.mean()),
            loss_bias_error=float(gaps.std() / math.sqrt(len(gaps))),
            effective_sample_size=float(part.effective_sample_size.mean()),
            num_rows=len(part.exact_squared_norm),
            repeats=float(part.repeats.double().mean()),
            z_mean=float(z_mean.mean()),
            z_sd=math.sqrt(max(float(z_variance.mean()), 0.0)),
        )

    def _rows(self, mask: Tensor) -> GroupMeans:
        return GroupMeans(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})


def concatenate(parts: Sequence[GroupMeans]) -> GroupMeans:
    """Join the means of consecutive parts of the rows."""
    return GroupMeans(
        **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(GroupMeans)}
    )


def error_of_root(squared: float, error: float) -> float:
    """Return the standard error of sqrt(max(squared, 0)), given that of ``squared``.

    It is the distance to the root of ``squared`` plus one error: half the relative error if
    ``squared`` is far from 0, the root of the error if it is not.
    """
    floor = max(squared, 0.0)
    return math.sqrt(floor + error) - math.sqrt(floor)


def off_diagonal_mean(cross: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over pairs of different groups and its delete-one-group jackknife error.

    Args:
        cross: [..., K, K] float64, symmetric products of the K groups.

    Returns:
        mean and standard error, each of the shape [...].
    """
    num_groups = cross.shape[-1]
    row_sums = cross.sum(dim=-1) - cross.diagonal(dim1=-2, dim2=-1)
    total = row_sums.sum(dim=-1)
    # Without group i, the off-diagonal sum loses 2·row_sums[i].
    without_one = total[..., None] - 2.0 * row_sums
    without_one = without_one / ((num_groups - 1) * (num_groups - 2))
    deviation = (without_one - without_one.mean(dim=-1, keepdim=True)).square().sum(dim=-1)
    error = torch.sqrt((num_groups - 1) / num_groups * deviation)
    return total / (num_groups * (num_groups - 1)), error
