"""Initial vectors of items, from the items that occur near each other in histories."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from candid.baselines import TrainingRows, pair_counts, training_rows
from candid.data import PreparedDataset

WINDOW = 5
DISTANCE_DECAY = 0.8
"""Pairs are counted up to this distance, each step further counting for less."""

SMOOTHING = 0.75
"""Exponent of the frequencies of the second item, so that rare ones do not have the largest
values (Levy, Goldberg and Dagan, 2015, section 3.2)."""

NOISE = 0.02
"""Standard deviation of what is added to each number, as in a random table."""

OVERSAMPLING, POWER_ITERATIONS = 10, 2
"""Of the randomised SVD (Halko, Martinsson and Tropp, 2011, algorithms 4.4 and 5.1)."""

SMALLEST_NORM = 1e-5
"""Norm of a row of factors below which its direction is rounding; rows without a pair reach 3e-6 on
Amazon Beauty, and the smallest of the others is 8e-4."""


def initial_item_vectors(dataset: PreparedDataset, dim: int) -> Tensor:
    """Factorise the positive pointwise mutual information of pairs of items: [V, D] float32.

    With counts C of pairs in both directions and their row sums n, the matrix is
    M[i, j] = max(log(C[i, j] / n_i) - log(n_j^.75 / Σ_k n_k^.75), 0), as in Levy, Goldberg and
    Dagan (2015). Its truncated SVD is U S Wᵀ, and the vectors are the rows of U S^½, each scaled to
    length 1: otherwise those of rare items are so short that training takes many epochs to tell
    the items apart. Dot products of items that occur near each other are large from the first
    step on, which a tower with tied items otherwise learns over many epochs.

    Noise as in a random table is added, so that items without a pair differ from each other. The
    rank of M bounds the number of columns that hold more than noise.

    Args:
        dataset: the prepared dataset.
        dim: D.

    Raises:
        DataError: the dataset has no training interaction.
    """
    rows = training_rows(dataset)
    vectors = torch.randn(rows.num_items, dim) * NOISE
    matrix = _pointwise_mutual_information(rows)
    if matrix.nnz == 0:
        return vectors
    rank = min(dim, rows.num_items)
    factors = _factors(matrix, rank)
    norms = factors.norm(dim=1, keepdim=True)
    # An item without a pair, or far from all factors, has a row of zeros up to rounding.
    vectors[:, :rank] += torch.where(norms > SMALLEST_NORM, factors / norms, 0.0)
    return vectors


def _factors(matrix: sparse.csr_array, rank: int) -> Tensor:
    """Return U S^½ of the truncated SVD: [V, rank] float32."""
    with warnings.catch_warnings():
        # torch warns that its matrices in this format are not finished; products are tested here.
        warnings.simplefilter("ignore", UserWarning)
        stored = torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
        )
        # Not an iteration to full precision: its time has no bound, and it fails where many
        # singular values are equal.
        size = min(rank + OVERSAMPLING, matrix.shape[0])
        left, values, _ = torch.svd_lowrank(stored, q=size, niter=POWER_ITERATIONS)
    return left[:, :rank] * values[:rank].sqrt()


def _pointwise_mutual_information(rows: TrainingRows) -> sparse.csr_array:
    """Return M of ``initial_item_vectors``: [V, V] float32."""
    counts = pair_counts(rows, window=WINDOW, distance_decay=DISTANCE_DECAY, both_directions=True)
    if counts.nnz == 0:
        return counts
    row_sums = np.asarray(counts.sum(axis=1), dtype=np.float64)
    smoothed = np.asarray(counts.sum(axis=0), dtype=np.float64) ** SMOOTHING
    smoothed /= smoothed.sum()
    sizes = np.repeat(row_sums, np.diff(counts.indptr)) * smoothed[counts.indices]
    # Both arguments are positive: an entry has a pair in its row and in its column.
    values = np.log(counts.data.astype(np.float64) / sizes)
    matrix = sparse.csr_array(
        (np.maximum(values, 0.0).astype(np.float32), counts.indices, counts.indptr),
        shape=counts.shape,
    )
    matrix.eliminate_zeros()
    return matrix
