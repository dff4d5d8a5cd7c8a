"""The native kernel for exact ranking in approximate search.

``rerank_pass.c`` is compiled by ``candid.native`` when an approximate index over a large catalog is
first searched. Without a C compiler NumPy and torch rank instead, with one line of log (logger
``candid.index``) and the same items up to rounding.
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
"""Catalogs below this size do not use the kernel: compiling it would cost more than it saves."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
NativeRerank = Callable[..., None]


def native_rerank_for(vectors: Tensor) -> NativeRerank | None:
    """Return the kernel if it can read the vectors and there are enough of them."""
    fits = (
        vectors.device.type == "cpu"
        and vectors.dtype == torch.float32
        and vectors.is_contiguous()
        and MIN_ITEMS <= len(vectors) <= LARGEST_ID
    )
    return native_rerank() if fits else None


def rerank(
    kernel: NativeRerank,
    vectors: Tensor,
    query: Floats,
    candidates: Ints,
    k: int,
    excluded: tuple[Ints, Ints] | None = None,
) -> tuple[Ints, Floats]:
    """Return the k best of each row's candidates.

    Args:
        kernel: of ``native_rerank_for``.
        vectors: [V, D] float32, contiguous.
        query: [B, D] float32.
        candidates: [B, C] int64, ids of items, distinct in a row; ids outside 0..V-1 are skipped.
        k: results per row, at least 1.
        excluded: items to leave out of each row, ascending in a row, [n] int64, and the offsets
            of the rows, [B + 1] int64; None: no exclusions.

    Returns:
        ids [B, k], -1 where fewer exist, and scores [B, k], -inf there; best first.
    """
    query, candidates = np.ascontiguousarray(query), np.ascontiguousarray(candidates)
    ids = np.empty((len(query), k), dtype=np.int64)
    scores = np.empty((len(query), k), dtype=np.float32)
    excluded_ids, offsets = (None, None) if excluded is None else excluded
    kernel(
        vectors.data_ptr(),
        len(vectors),
        query.ctypes.data,
        query.shape[1],
        candidates.ctypes.data,
        *candidates.shape,
        None if excluded_ids is None else excluded_ids.ctypes.data,
        None if offsets is None else offsets.ctypes.data,
        k,
        ids.ctypes.data,
        scores.ctypes.data,
        torch.get_num_threads(),
    )
    return ids, scores


@functools.cache
def native_rerank() -> NativeRerank | None:
    """Return the compiled function, or None where it is not available; compiled once."""
    fallback = "approximate search runs without its native kernel, somewhat slower"
    return load_kernel(SOURCE, _function, _check, LOGGER, fallback)


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


def _check(kernel: NativeRerank) -> None:
    """Refuse a kernel that computes wrong results: compilers differ."""
    vectors = (torch.arange(50 * 3) * 37 % 101 - 50.0).view(50, 3)
    candidates = np.array([[7, 3, -1, 44, 12, 9, 50], [0, 1, 2, 3, 4, 5, -1]])
    query = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=np.float32)
    excluded = np.array([3, 40, 1]), np.array([0, 2, 3])
    ids, scores = rerank(kernel, vectors, query, candidates, 5, excluded)
    products = vectors.numpy() @ query[0]
    best = sorted([7, 44, 12, 9], key=lambda item: (-products[item], item))
    fewer, _ = rerank(kernel, vectors, query, candidates, 2, excluded)
    if ids.tolist() != [[*best, -1], [0, 2, 3, 4, 5]] or fewer.tolist() != [best[:2], [0, 2]]:
        raise NativeError("the compiled code returns other items than NumPy")
    if scores[0].tolist() != [*products[best].tolist(), float("-inf")]:
        raise NativeError("the compiled code returns other scores than NumPy")
