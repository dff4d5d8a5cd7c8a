"""How often each item is a positive: what in-batch candidates are corrected by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.component import ComponentConfig, tagged
from candid.errors import DataError
from candid.samplers.on_device import OnDevice
from candid.samplers.registry import FREQUENCIES

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


@runtime_checkable
class StreamFrequency(Frequency, Protocol):
    """Item frequency that is learnt from the positives as they pass, and survives a resume.

    An item that the stream has not shown is never impossible: after T rows it is taken to be
    as rare as a stream that long can tell, Q = 1 / max(T + 1, V).
    """

    def observe(self, ids: Tensor) -> None:
        """Learn from the positives of a batch.

        Args:
            ids: int64, any shape, in the order of the stream.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all that was learnt, as tensors of the caller's own."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a ``state()`` of the same settings.

        Raises:
            ArtifactError: of other settings.
        """
        ...


class FrequencyConfig(ComponentConfig, ABC):
    """Settings of a frequency."""

    @abstractmethod
    def build(self, counts: Tensor) -> Frequency:
        """Build the frequency for a catalog.

        Args:
            counts: [V], how often each item is a training target; estimators from the stream
                use its length alone.
        """


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

    class Config(FrequencyConfig):
        """``ExactFrequency`` has no settings."""

        def build(self, counts: Tensor) -> ExactFrequency:
            """Build from the training counts."""
            return ExactFrequency(counts)

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


def check_positives(frequency: Frequency, ids: Tensor) -> None:
    """Refuse positives that never occur, on the CPU, where looking is free.

    Args:
        frequency: what was counted or learnt.
        ids: int64, any shape.

    Raises:
        DataError: a frequency of 0; names the item.
    """
    if ids.device.type == "cpu" and bool((never := frequency.log_q(ids).isneginf()).any()):
        item = int(ids[never][0])
        raise DataError(
            f"item {item} is a positive of the batch but has frequency 0: "
            "count the items over all the interactions that are trained on"
        )


def log_q_of_stream(probability: Tensor, num_rows: int, num_items: int) -> Tensor:
    """Log of an estimate, with the floor of ``StreamFrequency`` where it says 0.

    Args:
        probability: float64, any shape.
        num_rows: T, rows of the stream so far.
        num_items: V.

    Returns:
        float32, shape of ``probability``.
    """
    floor = 1.0 / max(num_rows + 1, num_items)
    return torch.where(probability > 0, probability, floor).log().float()


FrequencyComponent = Annotated[FrequencyConfig, tagged(FREQUENCIES, "frequency")]
"""A config field that holds the config of any registered frequency."""
