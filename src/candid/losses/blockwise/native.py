"""The softmax of a tile as a native kernel, compiled on first use.

``tile_pass.c`` is compiled by ``candid.native`` when a large loss is first computed. Without a C
compiler the losses use torch's operations, with one log line (logger ``candid.losses``).
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from candid.losses.blockwise.row_list import RowList
from candid.native import NativeError, load_kernel

LOGGER = logging.getLogger("candid.losses")
SOURCE = Path(__file__).with_name("tile_pass.c")
NAMES = {torch.bfloat16: "candid_bfloat16", torch.float32: "candid_float32"}
MAX_COLUMNS = 8192
"""Most columns of a tile, as in the C source."""


class NativeLists:
    """Lists of candidates by row as the kernel reads them.

    Args:
        lists: on the CPU; changes float32.
    """

    def __init__(self, lists: Sequence[RowList]) -> None:
        # Kept, because the kernel gets addresses.
        self._tensors = [
            None if part is None else part.contiguous()
            for one in lists
            for part in (one.first, one.stop, one.candidates, one.change)
        ]
        addresses = [None if part is None else part.data_ptr() for part in self._tensors]
        self.addresses = (ctypes.c_void_p * len(addresses))(*addresses)
        self.num_lists = len(lists)


class NativePass(Protocol):
    """The compiled pass."""

    def __call__(
        self,
        scores: Tensor,
        shift: Tensor | None,
        reference: Tensor,
        log_sum: Tensor,
        keep: bool,
        *,
        lists: NativeLists | None = None,
        start: tuple[int, int] = (0, 0),
        counts: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Compute the exponentials in place, and the log of their sum.

        Args:
            scores: [rows, columns] bfloat16 or float32, contiguous.
            shift: [columns] float32, or None.
            reference: [rows] float32, written.
            log_sum: [rows] float32, written.
            keep: whether the exponentials will be used.
            lists: of all rows and candidates.
            start: the first row and the first candidate of the tile.
            counts: fixed part [columns], part for each other row [columns] and number of other rows
                [B] of all rows, float32: the scores lose log(fixed + others · part).
        """
        ...


@functools.cache
def native_pass() -> NativePass | None:
    """Return the compiled pass, None where it is not available; tried once in a process."""
    fallback = "losses use torch operations, somewhat slower"
    return load_kernel(SOURCE, _callable, _check, LOGGER, fallback)


def _callable(library: ctypes.CDLL) -> NativePass:
    functions = {dtype: getattr(library, name) for dtype, name in NAMES.items()}
    pointer, length, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    for function in functions.values():
        function.argtypes = [pointer, pointer, length, length, pointer, flag, length, length]
        function.argtypes += [pointer, pointer, pointer, flag, pointer, pointer, flag]
        function.restype = None

    def run(
        scores: Tensor,
        shift: Tensor | None,
        reference: Tensor,
        log_sum: Tensor,
        keep: bool,
        *,
        lists: NativeLists | None = None,
        start: tuple[int, int] = (0, 0),
        counts: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        functions[scores.dtype](
            scores.data_ptr(),
            None if shift is None else shift.data_ptr(),
            *scores.shape,
            None if lists is None else lists.addresses,
            0 if lists is None else lists.num_lists,
            *start,
            *((None,) * 3 if counts is None else (part.data_ptr() for part in counts)),
            keep,
            reference.data_ptr(),
            log_sum.data_ptr(),
            torch.get_num_threads(),
        )

    return run


def _check(run: NativePass) -> None:
    """Refuse a kernel with wrong results: compilers differ."""
    ramp = torch.linspace(-30.0, 20.0, 3 * 41).view(3, 41)
    ramp[1, 7], ramp[2] = -torch.inf, -torch.inf
    shift = torch.linspace(-1.0, 1.0, 41)
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 2**-8)):
        scores, reference, log_sum = ramp.to(dtype), torch.empty(3), torch.empty(3)
        x = scores.double() - shift.double()
        run(scores, shift, reference, log_sum, True)
        expected = torch.exp(x - torch.where(x[:, :1].isneginf(), 0.0, x.amax(1, keepdim=True)))
        if not torch.allclose(scores.double(), expected, rtol=error, atol=1e-30):
            raise NativeError("the compiled kernel and torch disagree on the exponentials")
        if not torch.allclose(log_sum.double(), x.logsumexp(1), rtol=1e-6, atol=1e-6):
            raise NativeError("the compiled kernel and torch disagree on the sums")
