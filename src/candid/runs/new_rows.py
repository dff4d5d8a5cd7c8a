"""Initial rows of new items and new users in a warm start: the mean of their neighbours' rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from candid.baselines import pair_counts, training_rows
from candid.data import PreparedDataset
from candid.runs.initial_vectors import DISTANCE_DECAY, WINDOW

Bools = npt.NDArray[np.bool_]


def neighbour_means(
    dataset: PreparedDataset, rows_of: str, vectors: Tensor, is_known: Bools
) -> tuple[Tensor, Bools]:
    """Return the mean of the known vectors near each item, or of users with the same items.

    An item's neighbours are the items near it in histories, by the pairs that
    ``initial_item_vectors`` counts. A user's are the users with the same items: the mean over the
    user's items of the mean over the known users of each.

    Args:
        dataset: the prepared dataset.
        rows_of: "item" or "user".
        vectors: [n, D], read where ``is_known``.
        is_known: [n] bool.

    Returns:
        means [n, D] float32, and [n] bool, False for rows without a known neighbour.
    """
    rows = training_rows(dataset)
    known = np.where(is_known[:, None], vectors.float().cpu().numpy(), np.float32(0))
    mask = is_known.astype(np.float32)
    if rows_of == "item":
        counts = pair_counts(
            rows, window=WINDOW, distance_decay=DISTANCE_DECAY, both_directions=True
        )
        return _means(counts, known, mask)
    matrix = rows.matrix()
    by_item, has_user = _means(sparse.csr_array(matrix.T), known, mask)
    return _means(matrix, by_item.numpy(), has_user.astype(np.float32))


def _means(
    weights: sparse.csr_array, vectors: npt.NDArray[np.float32], mask: npt.NDArray[np.float32]
) -> tuple[Tensor, Bools]:
    """Return the weighted mean of the masked vectors for each row of weights."""
    totals = weights @ mask
    has_any: Bools = totals > 0
    sums = weights @ (vectors * mask[:, None])
    means = sums / np.where(has_any, totals, 1.0)[:, None].astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(means, dtype=np.float32)), has_any
