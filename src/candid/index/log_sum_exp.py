"""Running log-sum-exp of the rows of a score matrix that is computed tile by tile.

``log_sum_exp.c`` adds a tile in one pass; without a C compiler, and on a GPU, operations of torch
add it. On a CPU the rounding of a term depends on its score alone and sums are float64, so that the
result does not depend on the order of the columns. On a GPU terms and the sum of a tile are
float32.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from candid.index.select_pass import MIN_SCORES
from candid.native import NativeError, load_kernel

LOGGER = logging.getLogger("candid.index")
SOURCE = Path(__file__).with_name("log_sum_exp.c")

AddTile = Callable[..., None]
"""The function of ``log_sum_exp.c``."""


class RunningLogSumExp:
    """log Σ exp(score) of each row over all tiles added.

    Args:
        num_rows: B.
        num_columns: columns of all tiles together; few scores are added without the kernel.
        device: of the tiles.

    Example:
        >>> running = RunningLogSumExp(1, num_columns=4, device=torch.device("cpu"))
        >>> running.add(torch.tensor([[1.0, 2.0]]))
        >>> running.add(torch.tensor([[3.0, 4.0]]))
        >>> running.result()
        tensor([4.4402], dtype=torch.float64)
    """

    def __init__(self, num_rows: int, *, num_columns: int, device: torch.device) -> None:
        self._references = torch.full((num_rows,), -torch.inf, device=device)
        self._sums = torch.zeros(num_rows, dtype=torch.float64, device=device)
        is_native = device.type == "cpu" and num_rows * num_columns >= MIN_SCORES
        self._add_native = native_log_sum_exp() if is_native else None

    def add(self, tile: Tensor) -> None:
        """Add a tile of scores: [B, n] float32, contiguous; -inf adds nothing."""
        if self._add_native is not None:
            self._add_native(
                tile.data_ptr(),
                *tile.shape,
                self._references.data_ptr(),
                self._sums.data_ptr(),
                torch.get_num_threads(),
            )
            return
        references = torch.maximum(self._references, tile.amax(1))
        base = torch.where(references.isneginf(), 0.0, references)
        # On a GPU float64 terms are many times slower.
        scores, shift = (tile, base) if tile.is_cuda else (tile.double(), base.double())
        terms = (scores - shift[:, None]).exp_().sum(1).double()
        self._sums = self._sums * (self._references - base).double().exp() + terms
        self._references = references

    def result(self) -> Tensor:
        """Return the log-sum-exp of each row: [B] float64, -inf for a row without scores."""
        return self._references.double() + self._sums.log()


@functools.cache
def native_log_sum_exp() -> AddTile | None:
    """Return the compiled function, or None where it is not available; compiled once."""
    fallback = "log partitions are computed without their native kernel, somewhat slower"
    return load_kernel(SOURCE, _function, _check, LOGGER, fallback)


def _function(library: ctypes.CDLL) -> AddTile:
    pointer, length = ctypes.c_void_p, ctypes.c_int64
    function = library.candid_log_sum_exp
    function.argtypes = [pointer, length, length, pointer, pointer, ctypes.c_int32]
    function.restype = None
    add_tile: AddTile = function
    return add_tile


def _check(function: AddTile) -> None:
    """Refuse a function that computes wrong results: compilers differ."""
    scores = (torch.arange(3 * 700) * 389 % 509 - 300.0).view(3, 700) / 10
    scores[1, 300:] = -torch.inf
    scores[2] = -torch.inf
    references = torch.full((3,), -torch.inf)
    sums = torch.zeros(3, dtype=torch.float64)
    for begin, stop in ((0, 600), (600, 700)):
        tile = scores[:, begin:stop].contiguous()
        function(tile.data_ptr(), *tile.shape, references.data_ptr(), sums.data_ptr(), 1)
    result, expected = references.double() + sums.log(), scores.double().logsumexp(1)
    if not torch.allclose(result, expected, rtol=0, atol=1e-6):
        raise NativeError("the compiled code returns other sums than torch")
