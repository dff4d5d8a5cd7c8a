"""Transfer of the tensors of a batch to the device of the model."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on ``device``.

    From the CPU to a CUDA device the copy passes through page-locked memory and does not block the
    caller, so that the next batch is made and transferred while the device still computes. Other
    work on the current stream waits for the copy.

    Args:
        tensor: of any shape.
        device: the target.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
