"""The native kernel for selection in exact search.

``select_pass.c`` is compiled by ``candid.native`` at the first large search. Without a C compiler
exact search uses the operations of torch, with one line of log (logger ``candid.index``) and the
same results.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from candid.index.order import LARGEST_ID, encode
from candid.index.protocol import Exclusions
from candid.native import NativeError, load_kernel

if TYPE_CHECKING:
    Argument = type[ctypes._SimpleCData[Any]]

LOGGER = logging.getLogger("candid.index")
SOURCE = Path(__file__).with_name("select_pass.c")
MAX_WANTED = 4096
"""Largest number of items per row; torch, which then needs less memory, selects more."""

MIN_SCORES = 100_000
"""Searches with fewer scores do not use the kernel: compiling it would cost more than it saves."""


SCANNED_ROWS = 6
"""Up to this number of queries are multiplied by the kernel itself, more by matrix products. Of 10⁵
and 10⁶ items × 64, 6 queries take 0.80 of the time of products and 8 take 1.06 (one thread)."""
TILE = 4096
"""Columns of a tile of ``candid_scan``."""


@dataclass(frozen=True, slots=True)
class NativeSelection:
    """The functions of ``select_pass.c``."""

    select: Callable[..., None]
    scan: Callable[..., None]
    rank: Callable[..., None]


class NativeTopK:
    """The best items of each row over all tiles added, like ``RunningTopK``.

    Args:
        functions: of ``native_selection``.
        num_rows: largest number of rows.
        wanted: smallest number of items stored for a row, 1 ≤ wanted ≤ ``MAX_WANTED``.
        parts: ranges of items that ``scan`` reads side by side; 1 for ``add``.
    """

    def __init__(
        self, functions: NativeSelection, num_rows: int, wanted: int, parts: int = 1
    ) -> None:
        self._functions = functions
        self._parts = parts
        self._wanted = wanted
        self._capacity = 2 * wanted + 64
        self._scores = torch.empty(num_rows, parts * self._capacity)
        self._ids = torch.empty(self._scores.shape, dtype=torch.int32)
        self._counts = torch.empty(num_rows * parts, dtype=torch.int32)
        self._bounds = torch.empty(num_rows * parts)
        self._buffers = [
            buffer.data_ptr() for buffer in (self._scores, self._ids, self._counts, self._bounds)
        ]

    def add(self, tile: Tensor, first_id: int, exclude: Exclusions | None) -> None:
        """Add a tile.

        Args:
            tile: [b, n] float32, contiguous: scores of items ``first_id .. first_id + n - 1``;
                those of excluded items become -inf.
            first_id: id of the first column; 0 begins a new search.
            exclude: items to leave out; well-formed.
        """
        self._functions.select(
            tile.data_ptr(),
            *tile.shape,
            first_id,
            None if exclude is None else exclude.item_ids.data_ptr(),
            None if exclude is None else exclude.offsets.data_ptr(),
            self._wanted,
            self._capacity,
            *self._buffers,
            torch.get_num_threads(),
        )

    def scan(self, query: Tensor, vectors: Tensor, exclude: Exclusions | None) -> None:
        """Multiply and select for few queries, in one pass over the vectors.

        Args:
            query: [b, D] float32, contiguous.
            vectors: [V, D] float32, contiguous.
            exclude: items to leave out; well-formed.
        """
        tile = torch.empty(self._parts * len(query) * TILE)
        self._functions.scan(
            query.data_ptr(),
            vectors.data_ptr(),
            *query.shape,
            len(vectors),
            None if exclude is None else exclude.item_ids.data_ptr(),
            None if exclude is None else exclude.offsets.data_ptr(),
            tile.data_ptr(),
            self._parts,
            self._wanted,
            self._capacity,
            *self._buffers,
            self._parts,
        )

    def rank(self, query: Tensor, vectors: Tensor, errors: Tensor, keys: Tensor) -> Tensor:
        """Order the stored items by the definition of exact search.

        Args:
            query: [b, D] float32, contiguous.
            vectors: [V, D] float32, contiguous.
            errors: [b] float64, bounds of the difference between a score of the tiles and the
                score of the definition.
            keys: [b, K] int64, contiguous; filled with keys of ``order.encode``, best first.

        Returns:
            [b] bool, whether the row is proven: no other item can belong to it.
        """
        proven = torch.empty(len(query), dtype=torch.bool)
        self._functions.rank(
            query.data_ptr(),
            vectors.data_ptr(),
            *query.shape,
            errors.data_ptr(),
            keys.shape[1],
            self._wanted,
            self._scores.shape[1],
            *self._buffers,
            keys.data_ptr(),
            proven.data_ptr(),
            torch.get_num_threads(),
        )
        return proven


def native_selection_for(
    query: Tensor, vectors: Tensor, wanted: int, exclude: Exclusions | None
) -> NativeSelection | None:
    """Return the functions if they can read the arguments and the search is large enough."""
    fits = (
        query.device.type == vectors.device.type == "cpu"
        and vectors.is_contiguous()
        and len(vectors) <= LARGEST_ID
        and wanted <= MAX_WANTED
        and len(query) * len(vectors) >= MIN_SCORES
        and (exclude is None or _is_well_formed(exclude, len(query)))
    )
    return native_selection() if fits else None


def _is_well_formed(exclude: Exclusions, num_rows: int) -> bool:
    """Return whether C can read the exclusions safely; torch refuses malformed ones itself."""
    ids, offsets = exclude.item_ids, exclude.offsets
    packed = all(
        tensor.device.type == "cpu"
        and tensor.dtype == torch.int64
        and tensor.ndim == 1
        and tensor.is_contiguous()
        for tensor in (ids, offsets)
    )
    return (
        packed
        and len(offsets) == num_rows + 1
        and int(offsets[0]) >= 0
        and int(offsets[-1]) <= len(ids)
        and bool((offsets[1:] >= offsets[:-1]).all())
    )


@functools.cache
def native_selection() -> NativeSelection | None:
    """Return the compiled functions, or None where they are not available; compiled once."""
    fallback = "exact search runs without its native kernel, somewhat slower"
    return load_kernel(SOURCE, _functions, _check, LOGGER, fallback)


def _functions(library: ctypes.CDLL) -> NativeSelection:
    pointer, length, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    buffers: list[Argument] = [length, length, pointer, pointer, pointer, pointer]
    select, rank = library.candid_select, library.candid_rank
    scan = library.candid_scan
    tile: list[Argument] = [pointer, length, length, length]
    queries: list[Argument] = [pointer, pointer, length, length]
    select.argtypes = [*tile, pointer, pointer, *buffers, flag]
    scan.argtypes = [*queries, length, pointer, pointer, pointer, length, *buffers, flag]
    rank.argtypes = [*queries, pointer, length, *buffers, pointer, pointer, flag]
    select.restype = scan.restype = rank.restype = None
    return NativeSelection(select, scan, rank)


def _check(functions: NativeSelection) -> None:
    """Refuse functions that compute wrong results: compilers differ."""
    scores = (torch.arange(3 * 700) * 389 % 509 - 300.0).view(3, 700)
    scores[2] = torch.arange(700) - 500.0
    excluded = torch.arange(0, 600, 2)
    exclude = Exclusions(excluded, torch.tensor([0, 0, 300, 300]))
    best = NativeTopK(functions, 3, 5)
    for begin, stop in ((0, 400), (400, 700)):
        best.add(scores[:, begin:stop].contiguous(), begin, exclude)
    allowed = scores.clone()
    allowed[1, excluded] = -torch.inf
    expected = torch.topk(encode(allowed, torch.arange(700)), 4).values
    keys = torch.empty_like(expected)
    best.rank(torch.eye(3), scores.T.contiguous(), torch.zeros(3, dtype=torch.float64), keys)
    scanned, scanned_keys = NativeTopK(functions, 3, 5, parts=2), torch.empty_like(expected)
    scanned.scan(torch.eye(3), scores.T.contiguous(), exclude)
    scanned.rank(
        torch.eye(3), scores.T.contiguous(), torch.zeros(3, dtype=torch.float64), scanned_keys
    )
    if any(not torch.equal(found >> 32, expected >> 32) for found in (keys, scanned_keys)):
        raise NativeError("the compiled code returns other items than torch")
