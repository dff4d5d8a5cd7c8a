"""Limit on the memory of compiled matrix kernels on the CPU."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS: Final = 64
"""Number of cached kernels: several times the number that a step of one shape uses."""


def bound_kernel_cache() -> None:
    """Limit the number of compiled kernels that oneDNN caches.

    oneDNN compiles a kernel for every shape and caches 1,024 of them, up to a megabyte each with
    their scratch memory. Packed batches have another size at every step, so the cache grows to
    gigabytes of kernels that are rarely used again. The setting is read once, before the first
    kernel: call this function before any computation. A value set by the user is kept.
    """
    os.environ.setdefault(VARIABLE, str(KERNELS))
