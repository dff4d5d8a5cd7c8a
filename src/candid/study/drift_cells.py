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
        gradient_bias: given the positive; None where it was not measured.
        excess: NLL over that of the full softmax, in nats.
        excess_error: its standard error over users and seeds; None for a single user.
        chi2: median over the users, mean over the seeds; None where it is unknown.
    """

    point: GridPoint
    arm: str
    drift: float
    gradient_bias: float | None
    excess: float
    excess_error: float | None
    chi2: float | None


def drift_cells(study: StudyCells) -> list[DriftCell]:
    """Return the arms with a drift and a trained full softmax to compare with."""
    cells = []
    for point in study.points:
        for arm in study.arms(point):
            finished = list(study.finished(point, arm).values())
            drifts = [one.drift for one in finished if one.drift is not None]
            gap = study.difference(point, arm, FULL, "nll") if drifts else None
            if gap is None:
                continue
            drift, error = _mean_drift(drifts)
            bias = [one.gradient_bias.value for one in finished if one.gradient_bias is not None]
            chi2 = [one.chi2.p50 for one in finished if one.chi2 and one.chi2.p50 is not None]
            cells.append(
                DriftCell(
                    point,
                    arm,
                    drift if drift >= 2 * error else 0.0,
                    fmean(bias) if bias else None,
                    gap.value,
                    finite(gap.error),
                    fmean(chi2) if chi2 else None,
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
    (first, first_error), (second, second_error) = map(_mean_drift, drifts)
    return first - second, math.hypot(first_error, second_error)


def _mean_drift(drifts: Sequence[Measured]) -> tuple[float, float]:
    """Return the mean over seeds and its error.

    The measurements share users and samples, so their mean error does not fall with the seeds.
    """
    values = [one.value for one in drifts]
    of_seeds = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return fmean(values), math.hypot(of_seeds, fmean(one.standard_error or 0.0 for one in drifts))
