"""Initial vectors of items, from the items that occur near each other in histories."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
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


def initial_item_vectors(dataset: PreparedDataset, dim: int) -> Tensor:
    """Factorise the positive pointwise mutual information of pairs of items: [V, D] float32.

    With counts C of pairs in both directions, their row sums n and their total N, the matrix is
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
    rank = min(dim, rows.num_items - 1)
    if rank < 1 or matrix.nnz == 0:
        return vectors
    left, values, _ = svds(matrix, k=rank, random_state=0)
    factors = left * np.sqrt(np.maximum(values, 0.0))
    norms = np.linalg.norm(factors, axis=1, keepdims=True)
    # An item without a pair has a row of zeros, up to rounding.
    factors = np.divide(factors, norms, out=np.zeros_like(factors), where=norms > 1e-6)
    vectors[:, :rank] += torch.from_numpy(factors.astype(np.float32))
    return vectors


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
