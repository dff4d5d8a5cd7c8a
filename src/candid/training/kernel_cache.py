"""The memory that a CPU's matrix kernels take in a long run."""

from __future__ import annotations

import os

VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS = 64
"""Kept at most: several times what a step of one shape uses."""


def bound_kernel_cache() -> None:
    """Let oneDNN keep few of the kernels that it compiles.

    It compiles one for every shape that it meets and keeps 1,024, up to a megabyte each with
    their scratch memory. Packed batches are of another size at every step, so that kernels
    pile up by the gigabyte and are hardly ever used again. It asks once, before the first
    kernel; call this before any work. A value that the user has set stands.
    """
    os.environ.setdefault(VARIABLE, str(KERNELS))
