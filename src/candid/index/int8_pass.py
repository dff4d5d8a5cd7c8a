"""The native kernel for search in inverted lists with codes of 8 bits.

``int8_pass.c`` is compiled by ``candid.native`` at the first search of a large index. Without a C
compiler NumPy scans instead, with one line of log (logger ``candid.index``) and the same candidates
up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.native import NativeError, load_kernel

LOGGER = logging.getLogger("candid.index")
SOURCE = Path(__file__).with_name("int8_pass.c")
BLOCK_ITEMS = 16
"""Items of a block; ``int8_pass.c`` repeats it."""
MIN_ITEMS = 10_000
"""Smaller indexes do not use the kernel: compiling it would cost more than it saves."""
SCORED = 1 << 22
"""Scores in memory at a time in a search without the kernel."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
NativeInt8 = Callable[..., int]


@dataclass(frozen=True, slots=True)
class CodedLists:
    """Inverted lists of items, whose differences to the centres are codes of 8 bits.

    Item v of list l is centre l plus scale · (code - 128), up to rounding.

    Attributes:
        centres: [L, D] float32.
        starts: [L + 1] int64, the first block of each list, then the number of blocks S.
        codes: [S, G, 16, 4] uint8: number 4g + t of item i of a block at [s, g, i, t], with
            G = ⌈D / 4⌉ and 128 for numbers beyond D.
        scales: [S, 16] float32.
        item_ids: [S, 16] int32, -1 beyond the last item of a list.
    """

    centres: Floats
    starts: Ints
    codes: npt.NDArray[np.uint8]
    scales: Floats
    item_ids: npt.NDArray[np.int32]

    @classmethod
    def encode(cls, vectors: Tensor, centres: Tensor, lists: Tensor) -> CodedLists:
        """Encode vectors [V, D], each in one of the lists [V] with centres [L, D]."""
        num_items, dim = vectors.shape
        counts = torch.bincount(lists, minlength=len(centres))
        starts = torch.nn.functional.pad((-(-counts // BLOCK_ITEMS)).cumsum(0), (1, 0))
        num_blocks, groups = int(starts[-1]), -(-dim // 4)
        order = torch.argsort(lists, stable=True)
        # Items of a list stand one after the other from the start of its first block.
        shifts = BLOCK_ITEMS * starts[:-1] - (counts.cumsum(0) - counts)
        rows = torch.arange(num_items) + shifts[lists[order]]
        codes = np.full((num_blocks, BLOCK_ITEMS, groups * 4), 128, dtype=np.uint8)
        scales = np.zeros((num_blocks, BLOCK_ITEMS), dtype=np.float32)
        item_ids = np.full((num_blocks, BLOCK_ITEMS), -1, dtype=np.int32)
        item_ids.reshape(-1)[rows.numpy()] = order.numpy()
        for items, at in zip(order.split(SCORED // 64), rows.split(SCORED // 64), strict=True):
            rest = vectors[items] - centres[lists[items]]
            numbers, scale = round_to_int8(rest)
            codes.reshape(-1, groups * 4)[at.numpy(), :dim] = (numbers + 128).to(torch.uint8)
            scales.reshape(-1)[at.numpy()] = scale
        by_group = codes.reshape(num_blocks, BLOCK_ITEMS, groups, 4).transpose(0, 2, 1, 3)
        return cls(
            centres.numpy(), starts.numpy(), np.ascontiguousarray(by_group), scales, item_ids
        )

    def search(self, query: Tensor, num_probes: int, wanted: int) -> Ints:
        """Return items of the largest scores in the lists nearest to each query.

        Args:
            query: [B, D] float32.
            num_probes: lists to read, 1 ≤ num_probes ≤ L.
            wanted: items per query, at least 1.

        Returns:
            [B, wanted] ids in no order, -1 at the end where the lists have fewer.
        """
        products = query @ torch.from_numpy(self.centres).T
        numbers, scales = round_to_int8(query)
        groups = self.codes.shape[1]
        coded = torch.nn.functional.pad(numbers, (0, 4 * groups - query.shape[1])).to(torch.int8)
        native = native_int8() if self.codes.shape[0] * BLOCK_ITEMS >= MIN_ITEMS else None
        if native is not None:
            return _search_natively(native, self, coded, scales, products, num_probes, wanted)
        step = max(1, SCORED // max(1, self.item_ids.size))
        parts = [
            self._search_plainly(*rows, num_probes, wanted)
            for rows in zip(
                coded.split(step), scales.split(step), products.split(step), strict=True
            )
        ]
        return np.concatenate(parts) if parts else np.empty((0, wanted), dtype=np.int64)

    def _search_plainly(
        self, coded: Tensor, scales: Tensor, products: Tensor, num_probes: int, wanted: int
    ) -> Ints:
        groups, width = self.codes.shape[1], coded.shape[1]
        # Sums of products of bytes are exact in float32 up to 2²⁴.
        dtype = torch.float32 if width * 127 * 128 < 2**24 else torch.float64
        scores = torch.full((len(coded), self.item_ids.size), -torch.inf)
        probes = products.topk(num_probes, dim=1).indices
        for index in probes.unique().tolist():
            begin, end = self.starts[index], self.starts[index + 1]
            rows = (probes == index).any(1).nonzero().flatten()
            by_item = self.codes[begin:end].transpose(0, 2, 1, 3).reshape(-1, 4 * groups)
            numbers = torch.from_numpy(by_item).to(dtype) - 128
            sums = (coded[rows].to(dtype) @ numbers.T).float()
            sums *= torch.from_numpy(self.scales[begin:end].reshape(-1))
            sums = sums * scales[rows, None] + products[rows, index, None]
            sums[:, self.item_ids[begin:end].reshape(-1) < 0] = -torch.inf
            scores[rows, BLOCK_ITEMS * begin : BLOCK_ITEMS * end] = sums
        best = scores.topk(min(wanted, scores.shape[1]), dim=1)
        ids = self.item_ids.reshape(-1)[best.indices.numpy()].astype(np.int64)
        ids[(best.values == -torch.inf).numpy()] = -1
        return np.pad(ids, ((0, 0), (0, wanted - ids.shape[1])), constant_values=-1)


def round_to_int8(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers [n, D] from -127 to 127 and scales [n] whose product is near vectors."""
    scales = vectors.abs().amax(1) / 127
    # A scale of 0 belongs to a vector of zeros.
    return (vectors / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_(), scales


def _search_natively(
    kernel: NativeInt8,
    index: CodedLists,
    coded: Tensor,
    scales: Tensor,
    products: Tensor,
    num_probes: int,
    wanted: int,
) -> Ints:
    coded, scales, products = coded.contiguous(), scales.contiguous(), products.contiguous()
    candidates = np.empty((len(coded), wanted), dtype=np.int64)
    is_complete = kernel(
        index.codes.ctypes.data,
        index.scales.ctypes.data,
        index.item_ids.ctypes.data,
        index.starts.ctypes.data,
        len(index.centres),
        index.codes.shape[1],
        coded.data_ptr(),
        scales.data_ptr(),
        products.data_ptr(),
        len(coded),
        num_probes,
        wanted,
        candidates.ctypes.data,
        torch.get_num_threads(),
    )
    if not is_complete:
        raise MemoryError("not enough memory for a search in lists of 8-bit codes")
    return candidates


@functools.cache
def native_int8() -> NativeInt8 | None:
    """Return the compiled function, or None where it is not available; compiled once."""
    fallback = "search in lists of 8-bit codes runs without its native kernel, far slower"
    return load_kernel(SOURCE, _function, _check, LOGGER, fallback)


def _function(library: ctypes.CDLL) -> NativeInt8:
    pointer, length, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    function: NativeInt8 = library.candid_int8
    library.candid_int8.argtypes = [
        *(pointer, pointer, pointer, pointer, length, length),
        *(pointer, pointer, pointer, length),
        *(length, length, pointer, flag),
    ]
    library.candid_int8.restype = flag
    return function


def _check(kernel: NativeInt8) -> None:
    """Refuse a kernel that computes wrong results: compilers differ."""
    vectors = (torch.arange(300 * 6) * 389 % 509 - 250.0).view(300, 6)
    lists = torch.arange(300) % 7
    index = CodedLists.encode(vectors, vectors[:7] / 2, lists)
    query = (torch.arange(13 * 6) * 211 % 307 - 150.0).view(13, 6)
    products = query @ torch.from_numpy(index.centres).T
    numbers, scales = round_to_int8(query)
    coded = torch.nn.functional.pad(numbers, (0, 2)).to(torch.int8)
    for probes, wanted in ((2, 20), (7, 20), (1, 60)):
        found = _search_natively(kernel, index, coded, scales, products, probes, wanted)
        expected = index._search_plainly(coded, scales, products, probes, wanted)
        if not np.array_equal(np.sort(found), np.sort(expected)):
            raise NativeError("the compiled code returns other items than NumPy")
