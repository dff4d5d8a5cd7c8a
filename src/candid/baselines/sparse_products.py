"""Products of sparse matrices in blocks of rows, and the largest entries of each row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from candid.batches import Ints, offsets_of, ranges

MAX_PRODUCTS = 2**25
"""Multiplications of one block, which bound its entries: 256 MiB at most."""


def blocks_of_rows(costs: Ints, limit: int = MAX_PRODUCTS) -> Iterator[slice]:
    """Divide rows into consecutive blocks of bounded cost.

    Args:
        costs: [n], the cost of each row, such as the multiplications of its product.
        limit: cost of a block; a single row may exceed it.
    """
    totals = np.cumsum(costs, dtype=np.int64)
    begin, done = 0, 0
    while begin < len(costs):
        stop = max(begin + 1, int(np.searchsorted(totals, done + limit, side="right")))
        yield slice(begin, stop)
        begin, done = stop, int(totals[stop - 1])


def product_costs(left: sparse.csr_array, right: sparse.csr_array) -> Ints:
    """Return the number of multiplications of each row of ``left @ right``: [n] int64."""
    lengths = np.diff(right.indptr)[left.indices]
    totals = offsets_of(lengths.astype(np.int64))
    costs: Ints = np.diff(totals[left.indptr])
    return costs


def largest_in_rows(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """Keep the k largest entries of each row; of equal ones those of lower column.

    Args:
        matrix: [n, m] float32, stored entries positive.
        k: entries of a row.
    """
    lengths = np.diff(matrix.indptr)
    if not np.any(lengths > k):
        return matrix
    matrix.sort_indices()
    rows = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    # The bits of positive floats have the order of the floats, so one integer sorts by row and
    # then by falling value.
    bits = matrix.data.view(np.uint32).astype(np.uint64)
    order = np.argsort((rows << np.uint64(32)) | (np.uint64(2**32 - 1) - bits), kind="stable")
    kept = order[ranges(matrix.indptr[:-1].astype(np.int64), np.minimum(lengths, k))]
    kept.sort()
    return sparse.csr_array(
        (matrix.data[kept], matrix.indices[kept], offsets_of(np.minimum(lengths, k))),
        shape=matrix.shape,
    )
