"""Item frequency: how often each item is a positive, which corrects in-batch candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.component import ComponentConfig, tagged
from candid.errors import DataError
from candid.samplers.registry import FREQUENCIES
from candid.samplers.table_module import TableModule

Counts = Tensor | npt.NDArray[np.int64] | npt.NDArray[np.float64]
"""[V] non-negative numbers, one for each item: a tensor or a numpy array."""


class Frequency(TableModule, ABC):
    """Item frequency Q, exact or estimated from the stream of batches.

    An estimate from the stream never gives probability 0: an item that did not occur in T rows
    has Q = 1 / max(T + 1, V).

    Args:
        num_items: V, the size of the catalog.

    Attributes:
        num_items: V.
    """

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items = num_items

    @abstractmethod
    def log_q(self, ids: Tensor) -> Tensor:
        """Return the log probability that a training positive is the item.

        Args:
            ids: int64, any shape, on the device of the frequency.

        Returns:
            float32, shape and device of ``ids``; -inf for an item that is never a positive.
        """

    def observe(self, ids: Tensor) -> None:
        """Update the estimate with the positives of a batch; an exact frequency ignores them.

        Args:
            ids: int64, any shape, in the order of the stream.
        """

    def support(self, is_positive: Tensor) -> Tensor:
        """Return which items can be candidates where candidates are positives.

        Args:
            is_positive: [V] bool on the CPU, whether an item is ever a positive.

        Returns:
            [V] bool on the CPU.
        """
        return is_positive.clone()

    def check_positives(self, ids: Tensor) -> None:
        """Refuse positives of frequency 0, on the CPU, where the check needs no synchronisation.

        Args:
            ids: int64, any shape.

        Raises:
            DataError: an item has frequency 0; names it.
        """
        if ids.device.type == "cpu" and bool((is_impossible := self.log_q(ids).isneginf()).any()):
            item = int(ids[is_impossible][0])
            raise DataError(
                f"item {item} is a positive of the batch but has frequency 0: "
                "count the items over the targets that the loader deals"
            )


class FrequencyConfig(ComponentConfig, ABC):
    """Settings of a frequency."""

    @abstractmethod
    def build(self, counts: Tensor) -> Frequency:
        """Build the frequency for a catalog.

        Args:
            counts: [V], how often each item is a target in an epoch; estimators from the stream
                use its length alone.
        """


FrequencyComponent = Annotated[FrequencyConfig, tagged(FREQUENCIES, "frequency")]
"""A config field that holds the config of any registered frequency."""

FREQUENCY_DESCRIPTION = (
    "how often each item is a positive: 'exact', from the targets of an epoch, or estimated from "
    "the stream of batches"
)
"""Description of a field that holds a frequency."""


class ExactFrequency(Frequency):
    """Item frequency from counts.

    Args:
        counts: [V], how often each item is a target in an epoch.

    Raises:
        DataError: the counts are not a vector of finite non-negative numbers with a
            positive sum.

    Example:
        >>> import torch
        >>> from candid.samplers import ExactFrequency
        >>> ExactFrequency(torch.tensor([3, 1])).log_q(torch.tensor([1])).exp()
        tensor([0.2500])
    """

    class Config(FrequencyConfig):
        """``ExactFrequency`` has no settings."""

        def build(self, counts: Tensor) -> ExactFrequency:
            """Build from the training counts."""
            return ExactFrequency(counts)

    _log_q: Tensor

    def __init__(self, counts: Counts) -> None:
        weights = checked_counts(counts)
        super().__init__(len(weights))
        log_q = (weights.log() - weights.sum().log()).float()
        self.register_buffer("_log_q", log_q, persistent=False)

    def log_q(self, ids: Tensor) -> Tensor:
        """Return the log probability of items; see ``Frequency.log_q``."""
        return self._log_q[ids]

    def support(self, is_positive: Tensor) -> Tensor:
        """Positives with a count; see ``Frequency.support``."""
        return is_positive & ~self._log_q.cpu().isneginf()


def as_frequency(frequency: Frequency | Counts) -> Frequency:
    """Return a frequency unchanged, and counts [V] as an ``ExactFrequency``.

    Raises:
        DataError: the counts are not a vector of finite non-negative numbers with a positive
            sum.
    """
    return frequency if isinstance(frequency, Frequency) else ExactFrequency(frequency)


def checked_counts(counts: Counts) -> Tensor:
    """Return counts as a float64 tensor [V].

    Raises:
        DataError: not a vector, negative or not finite (names the item), or all zero.
    """
    weights = torch.as_tensor(counts).to(torch.float64)
    if weights.ndim != 1:
        raise DataError(f"item counts must be a vector [V], got shape {tuple(weights.shape)}")
    bad = torch.nonzero(~((weights >= 0) & torch.isfinite(weights)))
    if len(bad):
        item = int(bad[0])
        raise DataError(
            f"the count of item {item} is {weights[item].item()}: "
            "item counts must be finite and not negative"
        )
    if not bool((weights > 0).any()):
        raise DataError("no item has a positive count: there is nothing to sample from")
    return weights


def log_q_of_stream(probability: Tensor, num_rows: int, num_items: int) -> Tensor:
    """Return the log of an estimate from the stream, with the lower bound of ``Frequency``.

    Args:
        probability: float64, any shape; 0 where the item has not occurred.
        num_rows: T, rows of the stream so far.
        num_items: V.

    Returns:
        float32, shape of ``probability``.
    """
    lower_bound = 1.0 / max(num_rows + 1, num_items)
    return torch.where(probability > 0, probability, lower_bound).log().float()


@dataclass(frozen=True, slots=True)
class FrequencyError:
    """Relative errors |estimate - q| / q of a frequency, over items that occur.

    Attributes:
        weighted: mean over occurrences: an item counts as often as it occurs.
        by_band: the same for the items of each band of popularity. "head" has the most
            popular items with the first third of the occurrences, then come "middle" and
            "tail". Items with the same count stay together; a band without items is left out.
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

    Example:
        >>> import torch
        >>> from candid.samplers import ExactFrequency, frequency_error
        >>> counts = torch.tensor([3, 1])
        >>> round(frequency_error(ExactFrequency(torch.tensor([1, 1])), counts).weighted, 2)
        0.5
    """
    weights = checked_counts(counts).cpu()
    exact = weights / weights.sum()
    estimate = frequency.log_q(torch.arange(len(exact))).double().exp().cpu()
    distance = torch.where(exact > 0, (estimate - exact).abs(), 0.0)
    band = _popularity_bands(exact)
    by_band = {
        name: float(distance[band == position].sum() / exact[band == position].sum())
        for position, name in enumerate(("head", "middle", "tail"))
        if bool((exact[band == position] > 0).any())
    }
    return FrequencyError(float(distance.sum()), by_band)


def _popularity_bands(exact: Tensor) -> Tensor:
    """Return [V], the third of the occurrences that an item is in: 0 is the most popular one."""
    distinct, group = torch.unique(exact, return_inverse=True)
    mass = torch.zeros_like(distinct).index_add(0, group, exact)
    middle = mass.flip(0).cumsum(0).flip(0) - mass / 2
    return (middle * 3).long().clamp(max=2)[group]
