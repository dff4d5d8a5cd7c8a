"""How often each item is a positive: what in-batch candidates are corrected by."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.errors import DataError
from candid.proposals.on_device import OnDevice

Counts = Tensor | npt.NDArray[np.int64] | npt.NDArray[np.float64]
"""[V] non-negative numbers, one an item: a tensor or a numpy array."""


@runtime_checkable
class Frequency(Protocol):
    """Item frequency, exact or estimated from the stream of batches."""

    @property
    def num_items(self) -> int:
        """V, the size of the catalog."""
        ...

    def log_q(self, ids: Tensor) -> Tensor:
        """Log probability that a training positive is the item.

        Args:
            ids: int64, any shape.

        Returns:
            float32, shape and device of ``ids``; -inf for an item that is never a positive.
        """
        ...


class ExactFrequency:
    """Item frequency from counts.

    Args:
        counts: [V], how often each item is a training target.

    Attributes:
        num_items: V.

    Raises:
        DataError: the counts are not a vector of finite non-negative numbers with a
            positive sum.
    """

    def __init__(self, counts: Counts) -> None:
        weights = checked_counts(counts)
        self.num_items = len(weights)
        self._log_q = OnDevice((weights.log() - weights.sum().log()).float())

    def log_q(self, ids: Tensor) -> Tensor:
        """Log probability of items; see ``Frequency.log_q``."""
        return self._log_q(ids.device)[ids]


def checked_counts(counts: Counts) -> Tensor:
    """Return counts as a float64 tensor [V].

    Raises:
        DataError: not a vector, negative or not finite, or all zero; names the item.
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
        raise DataError("no item has a positive count: there is nothing to draw from")
    return weights
