"""Confidence intervals of ratios of sums over users, by resampling users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CHUNK = 4096
"""Users resampled at once; fixed, because the random numbers of a seed depend on it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval.

    Attributes:
        value: the estimate, or None where it is undefined.
        low: lower end of the interval, or None where no interval was computed.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


def poisson_weights(rng: np.random.Generator, num_resamples: int, num_users: int) -> Floats:
    """Sample how often each user occurs in each resample: [R, n] float64.

    Independent Poisson(1) counts: the multinomial bootstrap without its fixed total, which
    a ratio does not need (Hanley & MacGibbon, 2006). Sampled by inversion from 16-bit uniforms.
    """
    tail = np.cumsum(np.exp(-1.0) / np.cumprod(np.maximum(np.arange(9), 1)))
    table = np.searchsorted(tail, (np.arange(2**16) + 0.5) / 2**16).astype(np.float64)
    uniforms = rng.integers(0, 2**16, size=(num_resamples, num_users), dtype=np.uint16)
    result: Floats = table[uniforms]
    return result


def resample(
    owners: Ints,
    groups: Ints,
    values: Floats,
    *,
    num_owners: int,
    num_groups: int,
    num_resamples: int,
    seed: int,
) -> Floats:
    """Sum the rows of each group in resamples of the owners.

    Args:
        owners: [P] int64 ascending; all rows of an owner are resampled together.
        groups: [P] int64.
        values: [P, C].
        num_owners: n.
        num_groups: G.
        num_resamples: R.
        seed: the same seed and n give the same resamples for any rows, so that sums are paired.

    Returns:
        [R, G, C].
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros((num_resamples, num_groups, values.shape[1]))
    for begin in range(0, num_owners, CHUNK):
        stop = min(begin + CHUNK, num_owners)
        weights = poisson_weights(rng, num_resamples, stop - begin)
        first, last = np.searchsorted(owners, [begin, stop])
        for group in range(num_groups):
            rows = first + np.flatnonzero(groups[first:last] == group)
            if len(rows):
                sums[:, group] += weights[:, owners[rows] - begin] @ values[rows]
    return sums


def intervals(numerators: Floats, denominators: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Compute percentile intervals of resampled ratios.

    Args:
        numerators: [R, ...] resampled sums.
        denominators: the same shape; resamples where it is 0 are left out.
        confidence: coverage, such as 0.95.

    Returns:
        low and high [...], NaN where no resample defines the ratio.
    """
    is_defined = denominators > 0
    ratio = np.where(is_defined, numerators / np.where(is_defined, denominators, 1), np.nan)
    tail = (1 - confidence) / 2
    is_empty = ~is_defined.any(axis=0)
    ratio[:, is_empty] = 0.0
    low, high = np.nanquantile(ratio, [tail, 1 - tail], axis=0)
    return np.where(is_empty, np.nan, low), np.where(is_empty, np.nan, high)
