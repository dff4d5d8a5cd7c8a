"""The second look of approximate search as machine code, where there is a C compiler.

``rerank_pass.c`` is compiled by ``candid.native`` when an approximate index over a large catalog is
first searched; without it the second look is NumPy's and torch's, with one line of log (logger
``candid.index``) and with the same items but for rounding.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.index.order import LARGEST_ID
from candid.native import NativeError, load_kernel

LOGGER = logging.getLogger("candid.index")
SOURCE = Path(__file__).with_name("rerank_pass.c")
MIN_ITEMS = 10_000
"""Of a catalog that is worth a compiler's start."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
NativeRerank = Callable[..., None]


def native_rerank_for(vectors: Tensor) -> NativeRerank | None:
    """The function where it can read such vectors and there are enough of them."""
    fits = (
        vectors.device.type == "cpu"
        and vectors.dtype == torch.float32
        and vectors.is_contiguous()
        and MIN_ITEMS <= len(vectors) <= LARGEST_ID
    )
    return native_rerank() if fits else None


def best_of(
    function: NativeRerank,
    vectors: Tensor,
    query: Floats,
    candidates: Ints,
    k: int,
    excluded: tuple[Ints, Ints] | None = None,
) -> tuple[Ints, Floats]:
    """The k best of each row's candidates.

    Args:
        function: of ``native_rerank_for``.
        vectors: [V, D] float32, contiguous.
        query: [B, D] float32.
        candidates: [B, C] int64, ids of items, distinct in a row; what is none is passed over.
        k: results a row, at least 1.
        excluded: items to leave out of each row, ascending in a row, [n] int64, and where each
            row's begin, [B + 1] int64; None: nothing.

    Returns:
        ids [B, k], -1 where there are fewer, and scores [B, k], -inf there; best first.
    """
    query, candidates = np.ascontiguousarray(query), np.ascontiguousarray(candidates)
    ids = np.empty((len(query), k), dtype=np.int64)
    scores = np.empty((len(query), k), dtype=np.float32)
    none, offsets = (None, None) if excluded is None else excluded
    function(
        vectors.data_ptr(),
        len(vectors),
        query.ctypes.data,
        query.shape[1],
        candidates.ctypes.data,
        *candidates.shape,
        None if none is None else none.ctypes.data,
        None if offsets is None else offsets.ctypes.data,
        k,
        ids.ctypes.data,
        scores.ctypes.data,
        torch.get_num_threads(),
    )
    return ids, scores


@functools.cache
def native_rerank() -> NativeRerank | None:
    """The compiled function, or None where it is not to be had; looked for once."""
    without = "approximate search runs without machine code, somewhat slower"
    return load_kernel(SOURCE, _function, _check, LOGGER, without)


def _function(library: ctypes.CDLL) -> NativeRerank:
    pointer, length, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    function: NativeRerank = library.candid_rerank
    library.candid_rerank.argtypes = [
        *(pointer, length, pointer, length),
        *(pointer, length, length),
        *(pointer, pointer, length),
        *(pointer, pointer, flag),
    ]
    library.candid_rerank.restype = None
    return function


def _check(function: NativeRerank) -> None:
    """Refuse code that does not compute what it should: compilers differ."""
    vectors = (torch.arange(50 * 3) * 37 % 101 - 50.0).view(50, 3)
    candidates = np.array([[7, 3, -1, 44, 12, 9, 50], [0, 1, 2, 3, 4, 5, -1]])
    query = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=np.float32)
    excluded = np.array([3, 40, 1]), np.array([0, 2, 3])
    ids, scores = best_of(function, vectors, query, candidates, 5, excluded)
    products = vectors.numpy() @ query[0]
    first = sorted([7, 44, 12, 9], key=lambda item: (-products[item], item))
    fewer, _ = best_of(function, vectors, query, candidates, 2, excluded)
    if ids.tolist() != [[*first, -1], [0, 2, 3, 4, 5]] or fewer.tolist() != [first[:2], [0, 2]]:
        raise NativeError("the compiled code finds other items than NumPy")
    if scores[0].tolist() != [*products[first].tolist(), float("-inf")]:
        raise NativeError("the compiled code gives other scores than NumPy")
