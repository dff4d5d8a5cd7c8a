"""Search over the item vectors: nearest, among allowed items, near an item; log partition."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.index import Exclusions, LiveIndex, RunningLogSumExp
from candid.inference import FirstSearchWithLogPartition, Searchable, search_with_tie_order

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
TopItems = tuple[Ints, Floats]
"""Item ids and scores of one query, best first."""

MAX_SCORED: Final = 50_000
"""Maximum number of allowed items that are all scored; for more, the index is searched."""
MAX_TIE_DEPTH: Final = 16_384
"""Items that the index searches for the order of ties; for a larger tied group all are scored."""
BLOCK: Final = 16_384
"""Items scored at once."""
LOG_PARTITION_BLOCK: Final = 4096
"""Items scored at once for log partitions, so that their scores stay in the cache of a CPU."""


class CatalogSearch(ABC):
    """Base of searches for queries of a served model: the order of ties, and the best of a list.

    Args:
        tie_ranks: [V] int64, the order of items with equal scores, lowest first; items added
            later come after them, the earliest first. None: by id.
    """

    def __init__(self, tie_ranks: Ints | None = None) -> None:
        self._tie_ranks = np.zeros(0, dtype=np.int64) if tie_ranks is None else tie_ranks

    @property
    @abstractmethod
    def num_items(self) -> int:
        """The number of items, deleted ones included."""

    @property
    @abstractmethod
    def scores_all_items(self) -> bool:
        """Whether a search scores every item, so that log Z costs little more."""

    @property
    @abstractmethod
    def max_queries(self) -> int:
        """Largest number of queries to answer at once."""

    @abstractmethod
    def live_mask(self) -> Bools:
        """Return a mask of the items that can be recommended: [n] bool."""

    @abstractmethod
    def best_of(self, query: Tensor, k: int, item_ids: Ints) -> TopItems:
        """Return the best of some items for one query."""

    def _nearest(
        self, index: Searchable, query: Tensor, k: int, excluded: list[Ints]
    ) -> list[TopItems]:
        k = min(k, index.num_items)

        def rank_all(row: int) -> tuple[Tensor, Tensor]:
            live = self.live_mask()
            live[excluded[row][excluded[row] < len(live)]] = False
            ids, scores = self.best_of(query[row], k, np.flatnonzero(live))
            return torch.from_numpy(ids), torch.from_numpy(scores)

        result = search_with_tie_order(
            index,
            query,
            k,
            _to_exclusions(excluded),
            lambda: self._tie_ranks,
            max_depth=MAX_TIE_DEPTH,
            rank_all=rank_all,
        )
        ids, scores = result.item_ids.numpy(), result.scores.numpy()
        counts = (ids >= 0).sum(1)
        return [(i[:n], s[:n]) for i, s, n in zip(ids, scores, counts.tolist(), strict=True)]

    def top(self, item_ids: Ints, scores: Floats, k: int) -> TopItems:
        """Return the k largest scores; of equal scores the lower tie rank comes first."""
        if len(scores) > k:
            threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
            mask = scores >= threshold
            item_ids, scores = item_ids[mask], scores[mask]
        ranks, is_built = item_ids.copy(), item_ids < len(self._tie_ranks)
        ranks[is_built] = self._tie_ranks[item_ids[is_built]]
        order = np.lexsort((ranks, -scores))[:k]
        return item_ids[order], scores[order]


class ItemSearch(CatalogSearch):
    """Searches of one index; a query is its vector.

    Args:
        index: over the item vectors, with item updates.
        tie_ranks: [V] int64, the order of items with equal scores, lowest first; items added
            later come after them, the earliest first. None: by id.
    """

    def __init__(self, index: LiveIndex, tie_ranks: Ints | None = None) -> None:
        super().__init__(tie_ranks)
        self.index = index
        self._inverse_norms: Tensor | None = None

    @property
    def num_items(self) -> int:
        """The number of items, deleted ones included."""
        return self.index.num_items

    @property
    def max_queries(self) -> int:
        """Largest number of queries to answer at once: the index works in blocks itself."""
        return sys.maxsize

    @property
    def scores_all_items(self) -> bool:
        """Whether a search scores every item, so that log Z costs little more."""
        return self.index.built.scores_all_items

    def live_mask(self) -> Bools:
        """Return a mask of the items that can be recommended: [n] bool."""
        changes = self.index.changes
        mask = torch.zeros(changes.num_items, dtype=torch.bool)
        mask[: len(changes.hidden)] = ~changes.hidden
        mask[changes.item_ids[changes.is_alive]] = True
        return mask.numpy()

    def live_vectors(self, item_ids: Ints) -> tuple[Ints, Tensor]:
        """Return the live ones of some items, in their order, and their vectors [m, D] float32.

        Another request may delete an item between the check and the look-up; then both are
        repeated.
        """
        ids = torch.from_numpy(item_ids)
        while True:
            ids = ids[self.index.is_live(ids)]
            try:
                return ids.numpy(), self.index.vectors_of(ids)
            except ConfigError:
                continue

    def nearest(self, query: Tensor, k: int, excluded: list[Ints]) -> list[TopItems]:
        """Return the best items of B queries [B, D], without the excluded items of each.

        Equal scores are in the order of ties. For a query whose tied group is larger than
        ``MAX_TIE_DEPTH``, such as a query of zeros, every live item is scored.
        """
        return self._nearest(self.index, query, k, excluded)

    def nearest_with_log_partition(
        self, query: Tensor, k: int, excluded: list[Ints]
    ) -> tuple[list[TopItems], Tensor]:
        """Return the result of ``nearest``, and the ``log_partition`` of each query: [B] float64.

        An exact search gives both from the same scores; otherwise a second pass over the vectors
        gives the log partition.
        """
        index = FirstSearchWithLogPartition(self.index)
        items = self._nearest(index, query, k, excluded)
        return items, self.log_partition(query) if index.log_z is None else index.log_z

    def nearest_allowed(self, query: Tensor, k: int, allowed: Bools, excluded: Ints) -> TopItems:
        """Return the best items of one query [D] among the allowed ones: [n] bool.

        A few allowed items are all scored. For many, the index is searched for more than k items,
        and all allowed items are scored only if that leaves fewer than k.
        """
        # An item may be added at any time: filter and index may differ by the newest items.
        live = self.live_mask()
        allowed = allowed[: len(live)] & live[: len(allowed)]
        allowed[excluded[excluded < len(allowed)]] = False
        count = int(allowed.sum())
        if count > MAX_SCORED:
            share = count / self.index.num_items
            depth = min(self.index.num_items, int(2 * k / share) + 100)
            [(ids, scores)] = self.nearest(query[None], depth, [np.zeros(0, np.int64)])
            # An item may have been added after the filter was evaluated.
            mask = ids < len(allowed)
            mask[mask] = allowed[ids[mask]]
            if int(mask.sum()) >= k:
                return ids[mask][:k], scores[mask][:k]
        return self.best_of(query, k, np.flatnonzero(allowed))

    def best_of(self, query: Tensor, k: int, item_ids: Ints) -> TopItems:
        """Return the best of some items for one query [D]; every live one is scored."""
        ids, scores = [item_ids[:0]], [np.zeros(0, dtype=np.float32)]
        for begin in range(0, len(item_ids), BLOCK):
            live_ids, vectors = self.live_vectors(item_ids[begin : begin + BLOCK])
            ids.append(live_ids)
            scores.append(_products(vectors, query).numpy())
        return self.top(np.concatenate(ids), np.concatenate(scores), k)

    def similar(self, item_id: int, k: int, allowed: Bools | None, excluded: Ints) -> TopItems:
        """Return the live items of largest cosine with an item, without the item itself.

        Every live item is scored. The result is empty if the item was deleted.
        """
        changes = self.index.changes
        _, vectors = self.live_vectors(np.array([item_id]))
        if not len(vectors):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        vector = vectors[0]
        vector = vector / vector.norm().clamp(min=torch.finfo(torch.float32).tiny)
        if self._inverse_norms is None:
            self._inverse_norms = _inverse_norms(self.index.item_vectors)
        scores = torch.full((changes.num_items,), -torch.inf)
        for begin, block in _blocks(self.index.item_vectors, BLOCK):
            scores[begin : begin + len(block)] = _products(block, vector)
        scores[: len(self._inverse_norms)] *= self._inverse_norms
        scores[: len(changes.hidden)][changes.hidden] = -torch.inf
        rows = changes.is_alive
        added = changes.vectors[rows]
        scores[changes.item_ids[rows]] = _products(added, vector) * _inverse_norms(added)
        scores[item_id] = -torch.inf
        scores[torch.from_numpy(excluded[excluded < len(scores)])] = -torch.inf
        if allowed is not None:
            allowed = allowed[: len(scores)]
            scores[: len(allowed)][~torch.from_numpy(allowed)] = -torch.inf
            scores[len(allowed) :] = -torch.inf
        ids, top_scores = self.top(np.arange(len(scores)), scores.numpy(), k)
        mask = np.isfinite(top_scores)
        return ids[mask], top_scores[mask]

    def log_partition(self, query: Tensor) -> Tensor:
        """Return log sum exp(score) over all live items for B queries [B, D]: [B] float64."""
        changes = self.index.changes
        num_columns = len(changes.hidden) + changes.num_rows
        sums = RunningLogSumExp(len(query), num_columns=num_columns, device=query.device)
        for begin, block in _blocks(self.index.item_vectors, LOG_PARTITION_BLOCK):
            scores = query @ block.T
            if changes.num_hidden:
                scores[:, changes.hidden[begin : begin + len(block)]] = -torch.inf
            sums.add(scores)
        if changes.num_rows:
            scores = query @ changes.vectors.T
            scores[:, ~changes.is_alive] = -torch.inf
            sums.add(scores)
        return sums.result()


def _products(vectors: Tensor, vector: Tensor) -> Tensor:
    """Return the float64 products of [N, D] with [D] as float32, as an exact index does.

    In float32 the product of a row depends on its place in a block, which breaks ties.
    """
    return (vectors.double() @ vector.double()).float()


def _inverse_norms(vectors: Tensor) -> Tensor:
    norms = torch.empty(len(vectors))
    for begin, block in _blocks(vectors, BLOCK):
        norms[begin : begin + len(block)] = block.norm(dim=1)
    return torch.where(norms > 0, 1 / norms, 0.0)


def _blocks(vectors: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for begin in range(0, len(vectors), size):
        yield begin, vectors[begin : begin + size]


def _to_exclusions(excluded: list[Ints]) -> Exclusions | None:
    lengths = [len(ids) for ids in excluded]
    if not any(lengths):
        return None
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Exclusions(torch.from_numpy(np.concatenate(excluded)), torch.from_numpy(offsets))
