"""A constant tensor that follows its reader from device to device."""

from __future__ import annotations

import torch
from torch import Tensor


class OnDevice:
    """A constant with one cached copy per device it was asked for.

    Args:
        tensor: the constant; never written to.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copies = {tensor.device: tensor}
        self._source = tensor

    def __call__(self, device: torch.device) -> Tensor:
        """Return the copy on ``device``, made at the first call for it."""
        copy = self._copies.get(device)
        if copy is None:
            copy = self._copies[device] = self._source.to(device)
        return copy
