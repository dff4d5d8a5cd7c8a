"""Triton kernels: a check on each device, and torch operations where it fails.

Torch's CUDA builds bring Triton. The kernels are in modules of their own, the only ones that import
``triton``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch

LOGGER = logging.getLogger("candid.triton")
MIN_CAPABILITY = (8, 0)
"""Oldest compute capability (Ampere): the first with bfloat16 products."""


def is_usable(device: torch.device, check: Callable[[], None], what: str) -> bool:
    """Return whether kernels compile, run and agree with torch; log a warning where they fail.

    ``CANDID_NATIVE=0`` in the environment turns all kernels off. The check costs a compilation and
    a synchronisation: callers keep the answer.

    Args:
        device: where the kernels would run.
        check: runs the kernels on a small problem, and raises an error of any kind if they fail.
        what: what uses torch operations instead, a plural for the warning, such as "losses".
    """
    if os.environ.get("CANDID_NATIVE") == "0":
        return False
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return False
    try:
        check()
    # Triton raises errors of many kinds: without a C compiler, for drivers, for lack of memory.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        LOGGER.warning(
            "%s on %s use torch operations, slower than Triton: %s", what, device, reason
        )
        return False
    return True
