"""Differences between the steps of several processes and those of one, as numbers."""

import math
from itertools import islice

from candid.distributed.exchange import RowRanges


def own_rows(whole, rows, rank, world_size):
    """Return the rows of a whole table that a process holds, where ``rows`` are a part of it."""
    if rows.shape == whole.shape:
        return whole
    own = RowRanges(len(whole), world_size).of(rank)
    return whole[own.start : own.stop]


def step_difference(results, expected, num_steps=None):
    """Return the largest difference of losses, norms and gradients, over steps and processes.

    Args:
        results: of ``steps_of``, by rank.
        expected: that of one process.
        num_steps: of the first steps only; None: of all.
    """
    largest = 0.0
    for rank, result in enumerate(results):
        steps = zip(result["steps"], expected["steps"], strict=True)
        for step, one in islice(steps, num_steps):
            pairs = [(step[name], one[name]) for name in ("loss", "norm")]
            pairs += [(step["gradients"][name], g) for name, g in one["gradients"].items()]
            largest = max(largest, *(_difference(*pair, rank, len(results)) for pair in pairs))
    return largest


def weight_difference(results, expected):
    """Return the largest difference of the state after the last step, over processes."""
    return max(
        _difference(result["state"][name], tensor, rank, len(results))
        for rank, result in enumerate(results)
        for name, tensor in expected["state"].items()
    )


def _difference(actual, expected, rank, world_size):
    if actual is None or expected is None:
        return 0.0 if actual is expected else math.inf
    expected = own_rows(expected, actual, rank, world_size)
    if actual.numel() == 0:
        return 0.0
    difference = float((actual.double() - expected.double()).abs().max())
    return math.inf if math.isnan(difference) else difference
