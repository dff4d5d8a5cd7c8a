"""Markov: transitions from the items of a history to those that follow them."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field
from scipy import sparse

from candid.baselines.baseline import Grid
from candid.baselines.neighbours import Neighbours, NeighboursConfig
from candid.baselines.training_rows import Bools, Floats, TrainingRows
from candid.batches import Ints


class Markov(Neighbours):
    """Transitions within a window, in the direction of time.

    C[i, j] adds distance_decay^(d - 1) for each target j that follows an item i of the same
    user at distance d, 1 ≤ d ≤ window. S[i, j] = C[i, j] / Σ_k C[i, k] / n_j^popularity_discount
    with n_j the number of training targets of item j. A Markov chain whose order is the window,
    with the transitions of all distances in one matrix; the decay weights the history.
    """

    class Config(NeighboursConfig):
        """Settings of Markov transitions."""

        decay: float = Field(
            0.6, gt=0, le=1, description="weight of a history item relative to the one after it"
        )
        window: int = Field(3, ge=1, description="largest distance of a transition")
        distance_decay: float = Field(
            0.8, gt=0, le=1, description="weight of a transition relative to one step less"
        )
        popularity_discount: float = Field(
            0.0, ge=0, le=1, description="exponent of the item's count that divides the score"
        )

    grid: ClassVar[Grid] = {
        "decay": (0.2, 0.4, 0.6, 0.8, 0.9),
        "popularity_discount": (0.0, 0.25, 0.5),
        "window": (1, 3, 10, 20),
        "distance_decay": (0.5, 0.8, 1.0),
    }
    both_directions: ClassVar[bool] = False
    """Whether an item also counts as the successor of those that follow it."""

    @classmethod
    def fit(cls, rows: TrainingRows, config: Any) -> Self:
        """Add the transitions of one distance after the other."""
        counts = pair_counts(
            rows,
            window=config.window,
            distance_decay=config.distance_decay,
            both_directions=cls.both_directions,
        )
        similarities = _normalised(counts, rows.target_counts, config.popularity_discount)
        return cls(config, rows.target_counts, similarities)


def pair_counts(
    rows: TrainingRows, *, window: int, distance_decay: float, both_directions: bool
) -> sparse.csr_array:
    """Count the pairs of items that occur near each other in the order of a user: [V, V] float32.

    C[i, j] adds distance_decay^(d - 1) for each target j that follows an item i of the same user
    at distance d, 1 ≤ d ≤ window.

    Args:
        rows: the interactions.
        window: largest distance of a pair.
        distance_decay: weight of a pair relative to one step less.
        both_directions: whether C[j, i] adds the same where i is a target.
    """
    shape = rows.num_items, rows.num_items
    counts = sparse.csr_array(shape, dtype=np.float32)
    for distance in range(1, window + 1):
        is_pair = rows.user_ids[distance:] == rows.user_ids[:-distance]
        if not is_pair.any():
            break
        weight = distance_decay ** (distance - 1)
        before, after = rows.item_ids[:-distance], rows.item_ids[distance:]
        counts += _transitions(before, after, is_pair & rows.is_target[distance:], weight, shape)
        if both_directions:
            counts += _transitions(
                after, before, is_pair & rows.is_target[:-distance], weight, shape
            )
    return counts


def _transitions(
    sources: Ints, targets: Ints, is_pair: Bools, weight: float, shape: tuple[int, int]
) -> sparse.csr_array:
    """Return ``weight`` times the number of pairs of each source and target: [V, V] float32."""
    pairs = sources[is_pair], targets[is_pair]
    values = np.full(len(pairs[0]), weight, dtype=np.float32)
    matrix = sparse.csr_array((values, pairs), shape=shape)
    matrix.sum_duplicates()
    return matrix


def _normalised(
    counts: sparse.csr_array, target_counts: Floats, discount: float
) -> sparse.csr_array:
    """Divide each row by its sum, and each column by a power of its item's count."""
    sums = np.asarray(counts.sum(axis=1), dtype=np.float64)
    row_sums = np.repeat(sums, np.diff(counts.indptr))
    popularity = target_counts[counts.indices] ** discount
    values = (counts.data / (row_sums * popularity)).astype(np.float32)
    return sparse.csr_array((values, counts.indices, counts.indptr), shape=counts.shape)
