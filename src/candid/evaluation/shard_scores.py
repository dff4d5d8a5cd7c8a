"""Scores of a batch of queries over items that are on several processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from candid.batches import Ints
from candid.distributed import Group
from candid.evaluation.metrics import Bools
from candid.index import Exclusions, SearchResult, merge_results
from candid.inference import ItemSubset


class ShardedItems:
    """The ranked items of this process, and the other processes to merge results with.

    Args:
        item_vectors: [n, D] float32, of the items of this process.
        own_items: their ids, a range of length n.
        is_ranked: [V] bool, the ranked items of the whole catalog.
        group: the processes.
    """

    def __init__(
        self, item_vectors: Tensor, own_items: range, is_ranked: Bools, group: Group
    ) -> None:
        own = is_ranked[own_items.start : own_items.stop]
        self.begin, self.stop, self.group = own_items.start, own_items.stop, group
        self.num_items = int(is_ranked.sum())
        self.subset = ItemSubset(item_vectors, own) if own.any() else None
        self.item_vectors = item_vectors


class ShardScores:
    """Scores that are dot products of query and item vectors, each on the process of the item.

    Every process has all queries, and all of them get the same results: exact top-k lists of their
    own items, merged. A score does not depend on the number of processes.

    Args:
        items: the ranked items of this process.
        query: [b, D] float32, the same on every process.
    """

    def __init__(self, items: ShardedItems, query: Tensor) -> None:
        self.num_items, self.device = items.num_items, query.device
        self._items, self._query = items, query

    def search(
        self, k: int, exclude: Exclusions | None, *, with_log_partition: bool
    ) -> tuple[SearchResult, Tensor | None]:
        """Search the own items, and merge the lists of all processes."""
        items, query = self._items, self._query
        ids = torch.full((len(query), k), -1, device=self.device)
        scores = torch.full((len(query), k), -torch.inf, device=self.device)
        log_z = torch.full((len(query),), -torch.inf, dtype=torch.float64, device=self.device)
        if items.subset is not None:
            own_k, own_exclude = min(k, items.subset.num_items), self._own(exclude)
            if with_log_partition:
                found, log_z = items.subset.search_with_log_partition(query, own_k, own_exclude)
            else:
                found = items.subset.search(query, own_k, own_exclude)
            ids[:, :own_k] = torch.where(found.item_ids < 0, -1, found.item_ids + items.begin)
            scores[:, :own_k] = found.scores
        group, equal = items.group, [1] * items.group.world_size
        merged = merge_results(
            group.gather_rows(ids[None], equal), group.gather_rows(scores[None], equal), k
        )
        if not with_log_partition:
            return merged, None
        return merged, group.gather_rows(log_z[None], equal).logsumexp(0)

    def equal_scores(
        self, rows: Ints, scores: Tensor, exclude: Exclusions | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Find the own items that have the scores, and gather those of all processes."""
        items = self._items
        ids = [torch.empty(0, dtype=torch.int64, device=self.device)]
        is_equal = [torch.empty(0, len(rows), dtype=torch.uint8, device=self.device)]
        if items.subset is not None:
            query = self._query[torch.from_numpy(rows).to(self.device)]
            for own_ids, block in items.subset.equal_scores(query, scores, self._own(exclude)):
                has_any = block.any(0)
                ids.append(own_ids[has_any] + items.begin)
                is_equal.append(block.T[has_any].to(torch.uint8))
        # In the order of the processes, and so of the ids.
        every = items.group.gather_rows(torch.cat(ids))
        yield every, items.group.gather_rows(torch.cat(is_equal)).T.bool()

    def target_nll(self, target_rows: Tensor, target_ids: Tensor, log_z: Tensor) -> Tensor:
        """Compute the scores of the own targets in float64, and add those of all processes."""
        items = self._items
        is_own = (target_ids >= items.begin) & (target_ids < items.stop)
        own = is_own.nonzero()[:, 0]
        vectors = items.item_vectors[target_ids[own] - items.begin].double()
        logits = torch.zeros(len(target_ids), dtype=torch.float64, device=self.device)
        logits[own] = (self._query[target_rows[own]].double() * vectors).sum(1)
        return log_z[target_rows] - items.group.sum(logits)

    def _own(self, exclude: Exclusions | None) -> Exclusions | None:
        """Return the exclusions that are own items, counted from the first of them."""
        if exclude is None:
            return None
        begin, stop = self._items.begin, self._items.stop
        is_own = (exclude.item_ids >= begin) & (exclude.item_ids < stop)
        before = torch.nn.functional.pad(is_own.cumsum(0), (1, 0))
        return Exclusions(exclude.item_ids[is_own] - begin, before[exclude.offsets])
