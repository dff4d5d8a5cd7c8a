"""Search over the scores of a model without vectors, with the interface of ``ItemSearch``."""

from __future__ import annotations

import threading
from typing import Final, NoReturn

import numpy as np
import torch
from torch import Tensor

from candid.inference import ScoreRows, score_batch_size
from candid.serve.errors import RequestError
from candid.serve.search import Bools, CatalogSearch, Ints, TopItems

WHY_NO_VECTORS: Final = (
    "this model is a baseline without item vectors; serve a trained run, or the baseline als"
)
"""The sentence of requests that need vectors."""


class LiveItems:
    """The items of a model without vectors: all of its dataset, without the deleted ones.

    Args:
        num_items: V.

    Attributes:
        num_items: V, deleted items included.
    """

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items
        self._lock = threading.Lock()
        self._mask: Bools = np.ones(num_items, dtype=np.bool_)

    @property
    def num_live(self) -> int:
        """How many items can be recommended."""
        return int(self._mask.sum())

    def is_live(self, item_ids: Tensor) -> Tensor:
        """Return whether each item can be recommended: [m] bool."""
        return torch.from_numpy(self._mask[item_ids.numpy()])

    def delete(self, item_ids: Tensor) -> None:
        """Delete items; a search in progress sees all of them deleted, or none."""
        with self._lock:
            mask = self._mask.copy()
            mask[item_ids.numpy()] = False
            self._mask = mask

    def mask(self) -> Bools:
        """Return which items can be recommended: [V] bool, not to be changed."""
        return self._mask


class ScoreSearch(CatalogSearch):
    """Searches in which a query is the row of scores that the model gave to all V items.

    Args:
        items: that can be recommended.
        tie_ranks: [V] int64, the order of items with equal scores, lowest first.
    """

    def __init__(self, items: LiveItems, tie_ranks: Ints) -> None:
        super().__init__(tie_ranks)
        self._items = items

    @property
    def num_items(self) -> int:
        """The number of items, deleted ones included."""
        return self._items.num_items

    @property
    def scores_all_items(self) -> bool:
        """Whether a search scores every item: always."""
        return True

    @property
    def max_queries(self) -> int:
        """Largest number of queries whose scores exist at the same time."""
        return score_batch_size(self.num_items, self.num_items)

    def live_mask(self) -> Bools:
        """Return a mask of the items that can be recommended: [V] bool."""
        return self._items.mask().copy()

    def nearest(self, query: Tensor, k: int, excluded: list[Ints]) -> list[TopItems]:
        """Return the best items of B queries, rows of scores [B, V]."""
        mask = self._items.mask()
        if not mask.any():
            return [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(query)
        return self._nearest(ScoreRows(self.num_items, mask), query, k, excluded)

    def nearest_allowed(self, query: Tensor, k: int, allowed: Bools, excluded: Ints) -> TopItems:
        """Return the best items of one query [V] among the allowed ones: [V] bool."""
        mask = self._items.mask() & allowed[: self.num_items]
        mask[excluded] = False
        return self.best_of(query, k, np.flatnonzero(mask))

    def best_of(self, query: Tensor, k: int, item_ids: Ints) -> TopItems:
        """Return the best of some items for one query [V]; deleted ones are left out."""
        live = item_ids[self._items.mask()[item_ids]]
        return self.top(live, query.numpy()[live], k)

    def nearest_with_log_partition(
        self, query: Tensor, k: int, excluded: list[Ints]
    ) -> tuple[list[TopItems], Tensor]:
        """Refuse: the scores are not a probability."""
        self._refuse()

    def log_partition(self, query: Tensor) -> Tensor:
        """Refuse: the scores are not a probability."""
        self._refuse()

    def similar(self, item_id: int, k: int, allowed: Bools | None, excluded: Ints) -> TopItems:
        """Refuse: the model has no vectors."""
        self._refuse()

    def live_vectors(self, item_ids: Ints) -> tuple[Ints, Tensor]:
        """Refuse: the model has no vectors."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RequestError("unsupported", WHY_NO_VECTORS)
