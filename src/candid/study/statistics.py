"""Tests of a paired difference over users and seeds, and a rank correlation, with intervals.

Two arms of a study are trained with the same seeds and measured on the same users. The difference
of user u with seed s is

    d(u, s) = mean + user effect(u) + seed effect(s) + rest(u, s)                          (1)

with three independent variances: users differ, trainings differ, and a training changes the users
differently. A test over users alone takes one training for the method; a test over seeds alone
takes these users for all. With U users, S seeds and the mean squares of the two-way analysis of
variance (Searle, Casella & McCulloch 1992, *Variance Components*, chapter 4), the variance of the
mean of all differences is estimated without bias by

    V = (MS_users + MS_seeds - MS_rest) / (U · S)                                          (2)

and the mean over its error follows Student's t with the degrees of freedom of Satterthwaite (1946,
Biometrics Bulletin 2). With few seeds MS_seeds is often small by chance, which makes the error too
small and at once the degrees too many. The degrees therefore take MS_seeds at the upper end of its
one-sided 95 % interval. V is never taken below ``MS_users / (U · S)`` or ``MS_seeds / (U · S)``,
which are the variances of the tests over users alone and over seeds alone. The test is therefore
careful where neither users nor seeds differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, stdtr, stdtrit

Floats = npt.NDArray[np.float64]
SEED_VARIANCE_CONFIDENCE: Final = 0.95
"""Confidence of the upper end of the mean square of the seeds in the degrees of freedom."""
BOOTSTRAP_SAMPLES: Final = 2000
"""Samples of the bootstrap over groups."""


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two arms over users and seeds, with its tests.

    Attributes:
        value: the mean of the differences.
        error: its standard error over users and seeds; over users alone with one seed.
        degrees: of freedom of Student's t.
        users: U.
        seeds: S.
        confidence: of the interval.
    """

    value: float
    error: float
    degrees: float
    users: int
    seeds: int
    confidence: float = 0.95

    @cached_property
    def half_width(self) -> float:
        """Half of the length of the interval; nan for a single value."""
        return float(stdtrit(self.degrees, (1 + self.confidence) / 2)) * self.error

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half_width

    @property
    def p_value(self) -> float:
        """P-value of the hypothesis that the difference is 0, two-sided."""
        return min(1.0, 2 * min(self.p_above(0.0), self.p_below(0.0)))

    def p_above(self, bound: float) -> float:
        """Return the p-value of the hypothesis that the difference is at most a bound.

        A small value shows that the difference is above the bound. With ``bound = -margin`` this
        is the test of non-inferiority of an arm whose higher values are better.
        """
        return self._tail(bound - self.value)

    def p_below(self, bound: float) -> float:
        """Return the p-value of the hypothesis that the difference is at least a bound."""
        return self._tail(self.value - bound)

    def p_equivalent(self, margin: float) -> float:
        """Return the p-value of the hypothesis that the difference is not within ± margin.

        The larger of two one-sided p-values (TOST; Schuirmann 1987, Journal of Pharmacokinetics
        and Biopharmaceutics 15). A difference that is merely not significant is not equivalent.
        """
        return max(self.p_above(-margin), self.p_below(margin))

    def _tail(self, excess: float) -> float:
        """Return P(T ≤ excess / error)."""
        if math.isnan(self.error):
            return 1.0
        if self.error == 0:
            return 0.0 if excess < 0 else 1.0
        return float(stdtr(self.degrees, excess / self.error))


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of n pairs with its interval.

    Attributes:
        value: in [-1, 1]; nan where one side is constant.
        low: lower end of the interval; nan for fewer than four pairs, or for a single group.
        high: upper end.
        pairs: n.
    """

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def paired_difference(
    values: npt.ArrayLike, other: npt.ArrayLike, *, confidence: float = 0.95
) -> PairedDifference:
    """Compare two arms over the same users and seeds.

    Args:
        values: [U, S] of the first arm, one column for each seed.
        other: [U, S] of the second arm, the same users and seeds.
        confidence: of the interval.

    Returns:
        the difference, first minus second; its error is nan for a single user.

    Raises:
        ValueError: the shapes differ or are empty.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> base = rng.normal(size=(200, 5))
        >>> gain = 0.5 + 0.1 * rng.normal(size=(200, 5))
        >>> found = paired_difference(base + gain, base)
        >>> found.low < 0.5 < found.high, found.p_value < 0.001
        (True, True)
    """
    one, two = np.asarray(values, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 2 or one.size == 0:
        raise ValueError(f"two arms need the same [users, seeds], got {one.shape} and {two.shape}")
    gain = one - two
    users, seeds = gain.shape
    mean = float(gain.mean())
    error, degrees = _error(gain - mean)
    return PairedDifference(mean, error, degrees, users, seeds, confidence)


def _error(deviations: Floats) -> tuple[float, float]:
    """Return the standard error of the mean of [U, S] deviations from it, and its degrees."""
    users, seeds = deviations.shape
    if users < 2:
        return math.nan, math.nan
    by_user, by_seed = deviations.mean(axis=1), deviations.mean(axis=0)
    of_users = seeds * float(np.square(by_user).sum()) / (users - 1)
    if seeds < 2:
        return math.sqrt(of_users / users), users - 1.0
    of_seeds = users * float(np.square(by_seed).sum()) / (seeds - 1)
    rest = deviations - by_user[:, None] - by_seed
    of_rest = float(np.square(rest).sum()) / ((users - 1) * (seeds - 1))
    user_part = max(of_users - of_rest, 0.0)
    total = max(user_part + of_seeds, of_users)
    if total == 0:
        return 0.0, users - 1.0
    seed_part = of_seeds * (seeds - 1) / float(chdtri(seeds - 1, SEED_VARIANCE_CONFIDENCE))
    spread = user_part**2 / (users - 1) + seed_part**2 / (seeds - 1)
    degrees = (user_part + seed_part) ** 2 / spread if spread else users - 1.0
    return math.sqrt(total / (users * seeds)), max(degrees, min(users, seeds) - 1.0)


def rank_correlation(
    x: Sequence[float],
    y: Sequence[float],
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> RankCorrelation:
    """Compute Spearman's rank correlation; equal values share their mean rank.

    The interval is that of Fisher's z with the variance (1 + r² / 2) / (n - 3) of Bonett & Wright
    (2000, Psychometrika 65), which takes the pairs as independent. With groups it has the
    percentiles of a bootstrap over whole groups (Field & Welsh 2007, JRSS B 69).

    Args:
        x: n values.
        y: n values.
        groups: n names; pairs with the same name may depend on each other. None: none do.
        confidence: of the interval.

    Example:
        >>> rank_correlation([1, 2, 3, 4, 5], [1, 2, 4, 3, 5]).value
        0.9
    """
    pairs = len(x)
    value = _correlation(x, y)
    if pairs < 4 or math.isnan(value):
        return RankCorrelation(value, math.nan, math.nan, pairs)
    if groups is not None:
        return RankCorrelation(value, *_group_interval(x, y, groups, confidence), pairs)
    # Fisher's z is infinite at ±1.
    bounded = min(max(value, -1 + 1e-12), 1 - 1e-12)
    quantile = float(stdtrit(np.inf, (1 + confidence) / 2))
    half = quantile * math.sqrt((1 + bounded**2 / 2) / (pairs - 3))
    z = math.atanh(bounded)
    return RankCorrelation(value, math.tanh(z - half), math.tanh(z + half), pairs)


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; nan where one side is constant."""
    ranks = [_ranks(values) - (len(values) + 1) / 2 for values in (x, y)]
    norm = math.sqrt(float(np.square(ranks[0]).sum() * np.square(ranks[1]).sum()))
    return float(ranks[0] @ ranks[1]) / norm if norm else math.nan


def _group_interval(
    x: Sequence[float], y: Sequence[float], groups: Sequence[str], confidence: float
) -> tuple[float, float]:
    """Return the percentiles of the rank correlation over samples of whole groups."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(group == one) for one in range(int(group.max()) + 1)]
    if len(members) < 2:
        return math.nan, math.nan
    pairs = np.stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    rng = np.random.default_rng(0)
    found = []
    for draw in rng.integers(0, len(members), (BOOTSTRAP_SAMPLES, len(members))):
        drawn = pairs[:, np.concatenate([members[one] for one in draw])]
        found.append(_correlation(drawn[0].tolist(), drawn[1].tolist()))
    low, high = np.nanquantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _ranks(values: Sequence[float]) -> Floats:
    """Return ranks from 1; ``scipy.stats.rankdata`` does the same, but takes seconds to import."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
