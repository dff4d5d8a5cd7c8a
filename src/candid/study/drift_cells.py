"""Predicted drift of the cells of a study beside the excess NLL that was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

from candid.study.records import Measured, finite
from candid.study.study_cells import GridPoint, StudyCells

FULL: Final = "full_softmax"
"""Arm that the excess NLL is measured from."""


@dataclass(frozen=True)
class DriftCell:
    """Predicted and measured excess of an arm at a grid point.

    Attributes:
        point: the grid point.
        arm: the arm.
        drift: predicted, in nats, mean over the seeds.
        gradient_bias: given the positive, mean over the seeds; None where a seed lacks it.
        excess: NLL over that of the full softmax, in nats.
        excess_error: its standard error over users and seeds; None for a single user.
        chi2: median over the users, mean over the seeds; None where it is unknown.
        seeds: number of finished seeds that the arm and the full softmax share. All values are
            those of these seeds.
        drift_error: standard error of ``drift``; None in a summary of an earlier version, whose
            ``drift`` and ``gradient_bias`` are 0 where they were below twice their error.
        gradient_bias_error: that of ``gradient_bias``; None also where that is None.
        chi2_users: least number of users of ``chi2`` and ``gradient_bias`` in a seed; None in a
            summary of an earlier version.
        drift_users: that of ``drift``.
    """

    point: GridPoint
    arm: str
    drift: float
    gradient_bias: float | None
    excess: float
    excess_error: float | None
    chi2: float | None
    seeds: int
    drift_error: float | None = None
    gradient_bias_error: float | None = None
    chi2_users: int | None = None
    drift_users: int | None = None

    @property
    def drift_is_above_its_error(self) -> bool:
        """Whether the drift is at least twice its error, so that it is different from 0."""
        return self.drift > 0 and self.drift >= 2 * (self.drift_error or 0.0)

    @property
    def bias_is_above_its_error(self) -> bool:
        """Whether the gradient bias is known and at least twice its error."""
        bias = self.gradient_bias or 0.0
        return bias > 0 and bias >= 2 * (self.gradient_bias_error or 0.0)


def drift_cells(study: StudyCells) -> list[DriftCell]:
    """Return the arms with a drift of each seed that they share with the full softmax."""
    cells = []
    for point in study.points:
        for arm in study.arms(point):
            full = study.finished(point, FULL)
            finished = [one for seed, one in study.finished(point, arm).items() if seed in full]
            drifts = [one.drift for one in finished if one.drift is not None]
            if not finished or len(drifts) < len(finished):
                continue
            gap = study.difference(point, arm, FULL, "nll")
            if gap is None:
                continue
            biases = [one.gradient_bias for one in finished if one.gradient_bias is not None]
            chi2 = [one.chi2.p50 for one in finished if one.chi2 and one.chi2.p50 is not None]
            drift, drift_error = _mean(drifts)
            bias, bias_error = _mean(biases) if len(biases) == len(finished) else (None, None)
            cells.append(
                DriftCell(
                    point,
                    arm,
                    drift,
                    bias,
                    gap.value,
                    finite(gap.error),
                    fmean(chi2) if chi2 else None,
                    gap.seeds,
                    drift_error,
                    bias_error,
                    min(one.chi2_users for one in finished),
                    min(one.drift_users for one in finished),
                )
            )
    return cells


def users_text(cells: Sequence[DriftCell]) -> str:
    """Return a sentence with the number of users of the measurements, for captions."""
    known = [(one.chi2_users, one.drift_users) for one in cells]
    columns = [[one for one in column if one is not None] for column in zip(*known, strict=True)]
    if not all(columns):
        return "The number of users of chi2 and drift was not recorded."
    chi2, drift = (_range(column) for column in columns)
    return f"chi2 and the gradient bias are over {chi2} users, the drift is over {drift} of them."


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def predicted_difference(
    study: StudyCells, point: GridPoint, arm: str, other: str
) -> tuple[float, float] | None:
    """Return the difference of the drifts of two arms and its error; None where unknown."""
    both = [study.finished(point, one) for one in (arm, other)]
    seeds = sorted(set(both[0]) & set(both[1]))
    cells = [[one[seed] for seed in seeds] for one in both]
    drifts = [[one.drift for one in of_arm if one.drift is not None] for of_arm in cells]
    if not seeds or any(len(one) < len(seeds) for one in drifts):
        return None
    (first, first_error), (second, second_error) = map(_mean, drifts)
    return first - second, math.hypot(first_error, second_error)


def _mean(measured: Sequence[Measured]) -> tuple[float, float]:
    """Return the mean over seeds and its error.

    The measurements share users and samples, so their mean error does not fall with the seeds.
    """
    values = [one.value for one in measured]
    of_seeds = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return fmean(values), math.hypot(of_seeds, fmean(one.standard_error or 0.0 for one in measured))
