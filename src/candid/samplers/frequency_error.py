"""How far an estimated frequency is from exact counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from candid.samplers.frequency import Counts, Frequency, checked_counts


@dataclass(frozen=True, slots=True)
class FrequencyError:
    """Relative errors |estimate - q| / q of a frequency, over items that occur.

    Attributes:
        weighted: the mean over occurrences: an item counts as often as it occurs.
        by_band: the same for the items of each band of popularity. "head" are the most
            popular items that hold the first third of the occurrences, then "middle", then
            "tail"; items of one count stay together, and a band without items is left out.
    """

    weighted: float
    by_band: Mapping[str, float]


def frequency_error(frequency: Frequency, counts: Counts) -> FrequencyError:
    """Compare a frequency with exact counts of the same stream.

    Args:
        frequency: exact or estimated.
        counts: [V], how often each item occurred.

    Raises:
        DataError: the counts are not a vector of finite non-negative numbers with a positive
            sum.
    """
    weights = checked_counts(counts).cpu()
    exact = weights / weights.sum()
    estimate = frequency.log_q(torch.arange(len(exact))).double().exp().cpu()
    distance = torch.where(exact > 0, (estimate - exact).abs(), 0.0)
    band = _bands(exact)
    by_band = {
        name: float(distance[band == place].sum() / exact[band == place].sum())
        for place, name in enumerate(("head", "middle", "tail"))
        if bool((exact[band == place] > 0).any())
    }
    return FrequencyError(float(distance.sum()), by_band)


def _bands(exact: Tensor) -> Tensor:
    """[V] 0, 1 or 2: the third of the occurrences, from the most popular on, that holds it."""
    distinct, place = torch.unique(exact, return_inverse=True)
    mass = torch.zeros_like(distinct).index_add(0, place, exact)
    middle = mass.flip(0).cumsum(0).flip(0) - mass / 2
    return (middle * 3).long().clamp(max=2)[place]
