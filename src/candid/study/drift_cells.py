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
        drift: predicted, in nats, mean over the seeds; 0 where it is below twice its error.
        gradient_bias: given the positive, by the same rule; None where a seed lacks it.
        excess: NLL over that of the full softmax, in nats.
        excess_error: its standard error over users and seeds; None for a single user.
        chi2: median over the users, mean over the seeds; None where it is unknown.
        seeds: number of finished seeds that the arm and the full softmax share. All values are
            those of these seeds.
    """

    point: GridPoint
    arm: str
    drift: float
    gradient_bias: float | None
    excess: float
    excess_error: float | None
    chi2: float | None
    seeds: int


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
            cells.append(
                DriftCell(
                    point,
                    arm,
                    _above_error(drifts),
                    _above_error(biases) if len(biases) == len(finished) else None,
                    gap.value,
                    finite(gap.error),
                    fmean(chi2) if chi2 else None,
                    gap.seeds,
                )
            )
    return cells


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


def _above_error(measured: Sequence[Measured]) -> float:
    """Return the mean over seeds, or 0 where it is below twice its error."""
    value, error = _mean(measured)
    return value if value >= 2 * error else 0.0


def _mean(measured: Sequence[Measured]) -> tuple[float, float]:
    """Return the mean over seeds and its error.

    The measurements share users and samples, so their mean error does not fall with the seeds.
    """
    values = [one.value for one in measured]
    of_seeds = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return fmean(values), math.hypot(of_seeds, fmean(one.standard_error or 0.0 for one in measured))
