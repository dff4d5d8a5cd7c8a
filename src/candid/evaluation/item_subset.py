"""The items that an evaluation ranks: the whole catalog, or its warm or its cold part."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints, offsets_of
from candid.evaluation.likelihood import target_nll
from candid.evaluation.metrics import Bools
from candid.index import ExactIndex, Exclusions

Ranked = Literal["all", "warm", "cold"]


def is_ranked(train_counts: Ints, which: Ranked) -> Bools:
    """Which items are ranked.

    Args:
        train_counts: [V], how often each item is trained on.
        which: all items, those trained on, or those never trained on.

    Returns:
        [V] bool.
    """
    if which == "all":
        return np.ones(len(train_counts), dtype=np.bool_)
    warm: Bools = train_counts > 0
    return warm if which == "warm" else ~warm


class ItemSubset:
    """Search and likelihood over a part of the catalog, under the ids of the whole.

    Args:
        item_vectors: [V, D] float32, of the whole catalog.
        chosen: [V] bool, the items that are ranked; at least one.
    """

    def __init__(self, item_vectors: Tensor, chosen: Bools) -> None:
        self._ids = None if chosen.all() else np.flatnonzero(chosen)
        self._vectors = item_vectors
        if self._ids is not None:
            self._vectors = item_vectors[torch.from_numpy(self._ids).to(item_vectors.device)]
            place = torch.full((len(chosen),), -1, dtype=torch.int64)
            place[torch.from_numpy(self._ids)] = torch.arange(len(self._ids))
            self._place = place.to(item_vectors.device)
        self._index = ExactIndex(self._vectors)

    def best(self, query: Tensor, k: int, exclude: Exclusions | None) -> Ints:
        """The k best items of each query [B, D], best first: [B, K], -1 where there are no more.

        Args:
            query: [B, D] float32.
            k: results a query, at most the number of items ranked.
            exclude: items to leave out, ranked or not, or None.
        """
        if self._ids is not None and exclude is not None:
            exclude = self._placed(exclude)
        found: Ints = self._index.search(query, k, exclude).item_ids.cpu().numpy()
        return found if self._ids is None else np.where(found < 0, -1, self._ids[found])

    def nll(self, query: Tensor, target_rows: Tensor, target_ids: Tensor) -> Tensor:
        """As ``target_nll``, of the softmax over the items that are ranked: [M] float64."""
        if self._ids is not None:
            target_ids = self._place[target_ids]
        return target_nll(query, self._vectors, target_rows, target_ids)

    def _placed(self, exclude: Exclusions) -> Exclusions:
        lengths = exclude.offsets.diff().cpu().numpy()
        item_ids = self._place[exclude.item_ids]
        kept = (item_ids >= 0).cpu().numpy()
        rows = np.repeat(np.arange(len(lengths)), lengths)
        offsets = offsets_of(np.bincount(rows[kept], minlength=len(lengths)))
        return Exclusions(item_ids[item_ids >= 0], torch.from_numpy(offsets).to(item_ids.device))
