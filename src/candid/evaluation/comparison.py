"""Paired comparison of two evaluations over the users that both have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from candid.component import lookup
from candid.errors import DataError
from candid.evaluation.intervals import difference_interval
from candid.evaluation.metrics import Floats, is_share
from candid.evaluation.report import EvaluationReport, PerUser

CHUNK = 4096
"""Users whose signs are flipped at once; fixed, because the random numbers of a seed follow it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference of two models in one metric, first minus second.

    Attributes:
        metric: its name.
        difference: of the metric over the users for whom both reports define it.
        low: lower end of the interval; None for a single user.
        high: upper end; None for a single user.
        p_value: of the two-sided sign-flip test that the two models are exchangeable.
        users: number of users compared.
    """

    metric: str
    difference: float
    low: float | None
    high: float | None
    p_value: float
    users: int


def compare(
    first: EvaluationReport | PerUser,
    second: EvaluationReport | PerUser,
    metric: str,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations of the same queries, user by user.

    The interval is that of Student's t over the users' differences; for metrics in [0, 1] it
    includes one more user with difference 0 and its square 1/2, so that it has a width where no
    user differs (after Agresti & Min, 2005). The test flips the sign of each user's difference at
    random (Fisher's randomisation test, as recommended for retrieval by Smucker et al., CIKM 2007).

    Args:
        first: evaluation of one model.
        second: evaluation of the other, on the same dataset and role.
        metric: such as "ndcg@10" or "nll".
        resamples: sign flips of the test.
        confidence: coverage of the interval.
        seed: of the sign flips.

    Returns:
        the difference, first minus second, with its interval and p-value.

    Raises:
        UnknownNameError: a report lacks the metric.
        DataError: no user defines it in both reports.
    """
    one = first.per_user if isinstance(first, EvaluationReport) else first
    other = second.per_user if isinstance(second, EvaluationReport) else second
    column = _column(one, metric), _column(other, metric)
    _, a, b = np.intersect1d(one.user_ids, other.user_ids, return_indices=True)
    weight = one.denominators[a, column[0]]
    is_defined = (weight > 0) & (other.denominators[b, column[1]] > 0)
    a, b, weight = a[is_defined], b[is_defined], weight[is_defined]
    if len(weight) == 0:
        raise DataError(f"the two evaluations share no user that defines {metric}")
    # On the same queries both give a user the same weight, and the scale is exactly 1.
    scale = weight / other.denominators[b, column[1]]
    gain = one.numerators[a, column[0]] - other.numerators[b, column[1]] * scale
    low, high = difference_interval(gain, weight, is_share=is_share(metric), confidence=confidence)
    flipped_sums = _sign_flips(gain, resamples, seed)
    # Sums in another order differ in the last bits; an equally extreme flip must still count.
    tolerance = 1e-12 * np.abs(gain).sum()
    is_extreme = np.abs(flipped_sums) >= abs(gain.sum()) - tolerance
    return Comparison(
        metric=metric,
        difference=float(gain.sum() / weight.sum()),
        low=None if np.isnan(low) else low,
        high=None if np.isnan(high) else high,
        p_value=float((1 + is_extreme.sum()) / (1 + resamples)),
        users=len(gain),
    )


def _sign_flips(gain: Floats, num: int, seed: int) -> Floats:
    rng = np.random.default_rng([seed, 1])
    total = np.zeros(num)
    for begin in range(0, len(gain), CHUNK):
        part = gain[begin : begin + CHUNK]
        signs = rng.integers(0, 2, size=(num, len(part)), dtype=np.int8)
        total += signs @ (2 * part) - part.sum()
    return total


def _column(values: PerUser, metric: str) -> int:
    positions = {name: c for c, name in enumerate(values.names)}
    return lookup(positions, "metric", metric)
