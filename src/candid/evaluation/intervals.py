"""Confidence intervals over users in closed form, for ratios of sums and for paired differences.

A metric is Σ N / Σ D over users. Its variance follows from the residuals N - R·D (linearisation of
a ratio), and quantiles are those of Student's t. With few users that have a hit, the two plain
forms cover too little: the percentile bootstrap and the t interval have no width without a hit and
are too short on the upper side with few. So

- values in [0, 1], such as recall and NDCG, have the score interval of Wilson (1927): its variance
  is that of the tested value m, φ·m(1 - m)/n, where φ is the observed variance over that of a 0/1
  metric with the same mean. For 0/1 values φ is 1 and the interval is Wilson's;
- paired differences of such values, in [-1, 1], have the t interval with one user more, whose
  difference is 0 on average with square 1/2, after Agresti & Min (2005, "Simple improved confidence
  intervals for comparing matched proportions");
- other values, such as the NLL, have the t interval.

An interval ends where the values end: at 0 for values that cannot be negative, at -1 and 1 for
differences of values in [0, 1]. Of few users, the formulas alone go beyond.

``benchmarks/interval_coverage.py`` measures the coverage of these and of the bootstrap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(48)
MAX_STEPS = 100
PRIOR_SQUARE = 0.5
"""Squared difference of the user that a paired interval adds."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval.

    Attributes:
        value: the estimate, or None where it is undefined.
        low: lower end of the interval, or None where none was computed or fewer than two users
            define the value.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


def ratio_intervals(
    numerators: Floats,
    denominators: Floats,
    groups: Ints,
    *,
    num_groups: int,
    is_share: Bools,
    confidence: float,
    is_signed: Bools | None = None,
) -> tuple[Floats, Floats]:
    """Compute the intervals of C ratios of sums, for each of G groups of rows.

    Args:
        numerators: [P, C], one row per user and group.
        denominators: [P, C]; 0 where a row does not define a metric.
        groups: [P] int64.
        num_groups: G.
        is_share: [C] bool, whether the ratio of a row is always in [0, 1].
        confidence: coverage, such as 0.95.
        is_signed: [C] bool, whether the ratio of a row may be negative; None: all may.

    Returns:
        low and high [G, C]; NaN where fewer than two rows define the ratio.
    """
    low = np.full((num_groups, numerators.shape[1]), np.nan)
    high = low.copy()
    for group in range(num_groups):
        rows = groups == group
        low[group], high[group] = _intervals(
            numerators[rows], denominators[rows], is_share, confidence
        )
    if is_signed is not None:
        low = np.where(is_signed, low, np.maximum(low, 0.0))
    return low, high


def difference_interval(
    gains: Floats, weights: Floats, *, is_share: bool, confidence: float
) -> tuple[float, float]:
    """Compute the interval of a paired difference Σ gains / Σ weights.

    Args:
        gains: [n] the weighted difference of each user.
        weights: [n] above 0.
        is_share: whether each user's value of a model is in [0, 1].
        confidence: coverage, such as 0.95.

    Returns:
        low and high; NaN for fewer than two users.
    """
    n = len(gains)
    if n < 2:
        return math.nan, math.nan
    difference = float(gains.sum() / weights.sum())
    scaled = (gains - difference * weights) * (n / weights.sum())
    quantile = student_t(confidence, n - 1)
    if not is_share:
        half = quantile * math.sqrt(float(np.square(scaled).sum()) / (n - 1) / n)
        return difference - half, difference + half
    # The user that is added has difference 0 on average and the square of PRIOR_SQUARE.
    centre = difference * n / (n + 1)
    squares = float(np.square(scaled).sum()) + n * difference**2 + PRIOR_SQUARE
    half = quantile * math.sqrt(squares / (n + 1) - centre**2) / math.sqrt(n + 1)
    return max(centre - half, -1.0), min(centre + half, 1.0)


@lru_cache(maxsize=4096)
def student_t(confidence: float, degrees: int) -> float:
    """Return the t with P(|T| ≤ t) = ``confidence`` for Student's t with ν ≥ 1 ``degrees``.

    The distribution function is an integral of cos^(ν - 1) over angles up to atan(t / √ν), by
    Gauss-Legendre quadrature. Newton's method begins at the quantile of the normal distribution,
    which is below t; the function is concave there, so every step stays below. Relative error
    below 1e-6 for confidence from .5 to .999 and ν up to 10⁶.
    """
    nu = float(degrees)
    log_scale = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(math.pi)
    t = NormalDist().inv_cdf((1 + confidence) / 2)
    for _ in range(MAX_STEPS):
        angle = math.atan(t / math.sqrt(nu))
        values = np.exp(log_scale + (nu - 1) * np.log(np.cos(angle / 2 * (NODES + 1))))
        half_mass = angle / 2 * float(NODE_WEIGHTS @ values)
        log_density = log_scale - 0.5 * math.log(nu) - (nu + 1) / 2 * math.log1p(t * t / nu)
        step = (confidence / 2 - half_mass) / math.exp(log_density)
        t += step
        if abs(step) < 1e-12 * t:
            break
    return t


def _intervals(
    numerators: Floats, denominators: Floats, is_share: Bools, confidence: float
) -> tuple[Floats, Floats]:
    """Return low and high [C] for the rows of one group."""
    num_users = (denominators > 0).sum(axis=0)
    is_defined = num_users > 1
    total = np.where(is_defined, denominators.sum(axis=0), 1.0)
    ratio = numerators.sum(axis=0) / total
    residuals = np.where(denominators > 0, numerators - ratio * denominators, 0.0)
    variance = np.square(residuals).sum(axis=0) / total**2
    quantile = np.array([student_t(confidence, n - 1) if n > 1 else np.nan for n in num_users])
    half = quantile * np.sqrt(variance * num_users / np.maximum(num_users - 1, 1))
    low, high = ratio - half, ratio + half
    # Score interval: the m with |ratio - m| = t·√(φ·m(1 - m)/n), a quadratic equation.
    binary = ratio * (1 - ratio)
    # Without a hit, or without a miss, φ is unknown; 1 is the largest possible.
    per_user = np.square(denominators).sum(axis=0) / total**2
    share = np.where(binary > 0, variance / np.where(binary > 0, binary, 1.0), per_user)
    k = quantile**2 * share
    centre = (ratio + k / 2) / (1 + k)
    half = np.sqrt(np.maximum(binary, 0.0) * k + k * k / 4) / (1 + k)
    low = np.where(is_share, np.maximum(centre - half, 0.0), low)
    high = np.where(is_share, np.minimum(centre + half, 1.0), high)
    return np.where(is_defined, low, np.nan), np.where(is_defined, high, np.nan)
