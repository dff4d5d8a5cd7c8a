"""The rule by which a pilot chooses a learning rate, and by which it extends its range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

MAX_EXTENSIONS: Final = 4
"""Largest number of learning rates beyond an end of the range. With steps of a factor of 2 they
reach 16 times as far. A best rate that is still the last one is marked as one at an edge."""
EXPECTED_EXTENSIONS: Final = 1
"""Rates beyond the range that the estimate of the cost counts for a pilot that has not ended: in
the first study, 50 of 78 pilots had their best rate at an end of the range."""


def best_rate(values: Mapping[float, float]) -> float | None:
    """Return the learning rate with the largest value; of equals the smallest.

    Args:
        values: by learning rate, larger is better; -inf for a failed training.

    Returns:
        None where all have failed.

    Example:
        >>> best_rate({0.001: 0.10, 0.01: 0.12, 0.1: 0.12})
        0.01
    """
    working = {rate: value for rate, value in values.items() if value > -math.inf}
    if not working:
        return None
    return min(working, key=lambda rate: (-working[rate], rate))


def extension(values: Mapping[float, float | None]) -> float | None:
    """Return one more learning rate beyond the edge where the best one is.

    The step is that between the edge and its neighbour.

    Args:
        values: by learning rate, larger is better; -inf for a failed training.

    Returns:
        None where the best one has neighbours on both sides, or there are fewer than two.

    Example:
        >>> extension({0.001: 0.10, 0.01: 0.12, 0.1: 0.11}) is None
        True
        >>> extension({0.001: 0.10, 0.002: 0.11, 0.004: 0.12})
        0.008
    """
    rates = sorted(values)
    best = best_rate({rate: -math.inf if v is None else v for rate, v in values.items()})
    if best is None or len(rates) < 2:
        return None
    if best == rates[-1]:
        return _rounded(rates[-1] * rates[-1] / rates[-2])
    if best == rates[0]:
        return _rounded(rates[0] * rates[0] / rates[1])
    return None


def _rounded(rate: float) -> float:
    """Round to six digits, so that 0.004 · 2 is 0.008 on every machine."""
    return float(f"{rate:.6g}")
