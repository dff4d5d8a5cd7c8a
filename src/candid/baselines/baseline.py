"""The base class of baselines: simple models that score the whole catalog."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from candid.baselines.training_rows import Floats, TrainingRows
from candid.batches import Queries, ranges
from candid.component import ComponentConfig
from candid.inference import TwoTowerModel

Scores = npt.NDArray[np.float32]
Grid = Mapping[str, tuple[Any, ...]]
"""Values that tuning tries, by setting, in the order of tuning."""


class Baseline(ABC):
    """A fitted baseline: a ``ScoringModel`` without probabilities.

    A subclass has a nested ``Config`` and the methods ``fit`` and ``score_catalog``; one line in
    ``registry.py`` gives it its name.

    Args:
        config: settings of the baseline.
        target_counts: [V] float64, the number of training targets of each item.

    Attributes:
        config: the settings.
        grid: values that tuning tries for each setting, in the order of tuning.
        query_settings: settings that a query reads and the fit does not, so that a new value
            needs no new fit.
        state: names of the arrays (NumPy, or ``scipy.sparse.csr_array``) that the fit found:
            attributes, and arguments of the constructor after ``config``. A saved baseline is
            built from them.
        needs_history: whether an evaluation leaves out users without a history. A baseline has
            a list for them; it is set to measure the users of a model that has none.
    """

    Config: ClassVar[type[ComponentConfig]]
    grid: ClassVar[Grid] = {}
    query_settings: ClassVar[frozenset[str]] = frozenset()
    state: ClassVar[tuple[str, ...]] = ("target_counts",)

    reads_history: bool = True
    needs_history: bool = False
    needs_user = False
    estimates_probability = False

    def __init__(self, config: Any, target_counts: Floats) -> None:
        self.config = config
        self.target_counts = target_counts
        self._fallback = below_zero(target_counts)

    @classmethod
    @abstractmethod
    def fit(cls, rows: TrainingRows, config: Any) -> Self:
        """Fit the baseline.

        Args:
            rows: the training rows of a dataset.
            config: a ``Config`` of the class.

        Raises:
            ConfigError: the baseline cannot be fitted to such data; the message has a way out.
        """

    @abstractmethod
    def score_catalog(self, queries: Queries) -> Tensor:
        """Score all V items for B queries: [B, V] float32 on the CPU, larger is better."""

    @property
    def vector_model(self) -> TwoTowerModel | None:
        """The baseline as a model of query and item vectors; None: it has no vectors."""
        return None

    @property
    def has_vectors(self) -> bool:
        """Whether scores are products of query and item vectors."""
        return self.vector_model is not None

    def with_query_settings(self, config: Any) -> Self:
        """Return a copy with another config that differs in ``query_settings`` only."""
        other = copy.copy(self)
        other.config = config
        return other

    def with_popularity_below(self, scores: Scores) -> Tensor:
        """Rank the items without a score by popularity, below those with a score.

        Args:
            scores: [B, V] float32, positive, 0 where the baseline has no score; changed in place.

        Returns:
            [B, V] float32.
        """
        np.copyto(scores, self._fallback, where=scores == 0)
        return torch.from_numpy(scores)


def below_zero(counts: Floats) -> Scores:
    """Return scores between -1 and 0 in the order of some counts [V]; equal counts stay tied."""
    distinct, ranks = np.unique(counts, return_inverse=True)
    scores: Scores = ((ranks + 0.5) / len(distinct) - 1).astype(np.float32)
    return scores


def history_matrix(
    queries: Queries, num_items: int, *, decay: float = 1.0, distinct: bool = False
) -> sparse.csr_array:
    """Return the weights of the items in the history of each query: [B, V] float32.

    The interaction of age a, 0 for the most recent one, has the weight decay^a.

    Args:
        queries: B queries on the CPU.
        num_items: V.
        decay: above 0, at most 1.
        distinct: an item that occurs several times has the weight of its last occurrence; else
            the sum of all.
    """
    num_queries = len(queries)
    history = queries.history
    if history is None:
        return sparse.csr_array((num_queries, num_items), dtype=np.float32)
    stops = history.query_positions.numpy() + 1  # 0 without a history
    offsets = history.offsets.numpy()
    sequences = np.searchsorted(offsets, np.maximum(stops - 1, 0), side="right") - 1
    starts = np.where(stops > 0, offsets[sequences], 0)
    lengths = stops - starts
    positions = ranges(starts, lengths)
    rows = np.repeat(np.arange(num_queries), lengths)
    items = history.item_ids.numpy()[positions]
    ages = np.repeat(stops, lengths) - 1 - positions
    if distinct:
        # The first key of each pair in the reversed order is its last occurrence.
        _, first = np.unique((rows * num_items + items)[::-1], return_index=True)
        chosen = len(rows) - 1 - first
        rows, items, ages = rows[chosen], items[chosen], ages[chosen]
    weights = np.power(decay, ages.astype(np.float64)).astype(np.float32)
    return sparse.csr_array((weights, (rows, items)), shape=(num_queries, num_items))
