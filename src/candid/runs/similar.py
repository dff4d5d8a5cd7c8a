"""Similar items: the items whose vectors have the largest cosine with that of an item."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from candid.batches import Ints
from candid.data import PreparedDataset
from candid.errors import ConfigError
from candid.index import Exclusions
from candid.inference import (
    DEFAULT_K,
    ItemSubset,
    Recommendations,
    search_with_tie_order,
    tie_ranks,
    whole_k,
)


class SimilarItems:
    """An exact search for the items of a dataset that are similar to one of them.

    Retired items are not among the results.

    Args:
        dataset: of V items.
        item_vectors: [V, D].

    Attributes:
        num_items: how many items can be results.
    """

    def __init__(self, dataset: PreparedDataset, item_vectors: Tensor) -> None:
        retired = dataset.retired_items
        is_included = np.ones(dataset.num_items, np.bool_) if retired is None else ~retired
        self._dataset = dataset
        self.num_items = int(is_included.sum())
        with torch.inference_mode():
            self._vectors = F.normalize(item_vectors.float(), dim=1)
            self._items = ItemSubset(self._vectors, is_included)
        self._tie_ranks: Ints | None = None

    def check(self, k: int | None) -> int:
        """Return the number of results per item.

        Args:
            k: as requested; None: 10, or all other items of a smaller catalog.

        Raises:
            ConfigError: k is not between 1 and the number of other items.
        """
        k = min(DEFAULT_K, self.num_items - 1) if k is None else whole_k(k)
        if not 1 <= k < self.num_items:
            raise ConfigError(f"k {k} must be between 1 and the {self.num_items - 1} other items")
        return k

    def search(self, item_ids: Ints, k: int | None = None) -> Recommendations:
        """Find the similar items of some items, without the items themselves.

        Args:
            item_ids: [n] dense ids.
            k: results per item; None: 10, or all other items of a smaller catalog.

        Raises:
            ConfigError: k is not between 1 and the number of other items.
        """
        k = self.check(k)
        with torch.inference_mode():
            ids = torch.from_numpy(item_ids).to(self._vectors.device)
            itself = Exclusions(ids, torch.arange(len(ids) + 1, device=ids.device))
            found = search_with_tie_order(
                self._items, self._vectors[ids], k, itself, self._order_of_ties
            )
        items = self._dataset.items
        return Recommendations(
            found.item_ids.cpu().numpy(),
            found.scores.cpu().numpy(),
            item_ids,
            items,
            items,
            query_name="query",
        )

    def _order_of_ties(self) -> Ints:
        if self._tie_ranks is None:
            source_ids = self._dataset.items["source_id"]
            self._tie_ranks = tie_ranks(self._dataset.train_counts, source_ids)
        return self._tie_ranks
