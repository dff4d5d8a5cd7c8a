"""The order of items with equal scores in a list: by popularity, then by a hash of the id.

An index breaks ties by the dense id, and dense ids ascend with the source ids: of two items with
equal scores always the same one would be shown because of its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor

from candid.batches import Ints
from candid.features.hashed import hash_ids
from candid.index import Exclusions, SearchResult
from candid.index.order import encode

SEED = 0
"""Seed of the hash; fixed, so that all parts of candid show the same order."""
MAX_PAIRS = 2**22
"""Largest number of (query, item) pairs searched at once for groups of ties."""


class Searchable(Protocol):
    """An index, or a part of one."""

    @property
    def num_items(self) -> int:
        """The number of items."""

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k items of largest inner product, best first."""


class SearchableWithLogPartition(Searchable, Protocol):
    """An index that can also sum the log partition from the scores of a search."""

    def search_with_log_partition(
        self, query: Tensor, k: int, exclude: Exclusions | None = None
    ) -> tuple[SearchResult, Tensor | None]:
        """Search, and compute log Σ exp(q · v) [B] float64; None where that needs another pass."""


class FirstSearchWithLogPartition:
    """An index whose first search, that of all queries, gives their log partition too.

    Args:
        index: to search.

    Attributes:
        log_z: [B] float64 after the first search; None where the index cannot give it.
    """

    def __init__(self, index: SearchableWithLogPartition) -> None:
        self._index = index
        self._is_first = True
        self.log_z: Tensor | None = None

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self._index.num_items

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k items of largest inner product, best first."""
        if not self._is_first:
            return self._index.search(query, k, exclude)
        self._is_first = False
        result, self.log_z = self._index.search_with_log_partition(query, k, exclude)
        return result


def tie_ranks(counts: Ints, source_ids: pl.Series) -> Ints:
    """Rank items for ties: the more popular first, equally popular ones by a hash of the id.

    Args:
        counts: [V] int64, such as training counts.
        source_ids: [V], integers or text.

    Returns:
        [V] int64, a permutation of 0..V-1; among equal scores the lowest rank comes first.
    """
    ranks = np.empty(len(counts), dtype=np.int64)
    order = np.lexsort((hash_ids(source_ids, SEED), -counts))
    ranks[order] = np.arange(len(counts))
    return ranks


def search_with_tie_order(
    index: Searchable,
    query: Tensor,
    k: int,
    exclude: Exclusions | None,
    ranks: Callable[[], Ints],
    *,
    max_depth: int | None = None,
    rank_all: Callable[[int], tuple[Tensor, Tensor]] | None = None,
) -> SearchResult:
    """Search the k best items, equal scores in the order of ``ranks``.

    A list whose last score equals the next one is searched again for more items, until the tied
    group is complete. Lists without ties cost one item more than a plain search.

    Args:
        index: to search.
        query: [B, D] float32.
        k: results per query, 1 ≤ k ≤ ``index.num_items``.
        exclude: items to leave out, or None.
        ranks: returns the order of ties by item id, [n] int64; called only if there are ties.
            Items with ids from n on come after all others, the lower id first.
        max_depth: largest number of items searched. None: no limit.
        rank_all: for ``max_depth``; called for the row of a query whose tied group continues
            beyond that depth, returns ids [n] and scores [n] of its n ≤ k best items in the
            order of ties, without a search. None: the index chooses ``max_depth`` items of the
            group.

    Returns:
        as of a search.
    """
    limit = min(index.num_items, max(k + 1, max_depth or index.num_items))
    depth = min(k + 1, limit)
    result = index.search(query, depth, exclude)
    is_tied = (result.scores[:, 1:] == result.scores[:, :-1]) & result.scores[:, 1:].isfinite()
    if not bool(is_tied.any()):
        return SearchResult(result.item_ids[:, :k].clone(), result.scores[:, :k].clone())
    order = torch.from_numpy(ranks()).to(query.device)
    ids, scores = _sorted(result, k, order)
    open_rows = is_tied[:, k - 1].nonzero().squeeze(-1) if depth > k else ids.new_zeros(0)
    while len(open_rows) and depth < limit:
        depth = min(limit, max(64, 4 * depth))
        still_open = []
        for rows in open_rows.split(max(1, MAX_PAIRS // depth)):
            deeper = index.search(query[rows], depth, _of_rows(exclude, rows))
            ids[rows], scores[rows] = _sorted(deeper, k, order)
            still_open.append(rows[deeper.scores[:, -1] == deeper.scores[:, k - 1]])
        open_rows = torch.cat(still_open)
    if rank_all is not None and depth < index.num_items:
        for row in open_rows.tolist():
            best_ids, best_scores = rank_all(row)
            ids[row], scores[row] = -1, -torch.inf
            ids[row, : len(best_ids)], scores[row, : len(best_ids)] = best_ids, best_scores
    return SearchResult(ids, scores)


def _sorted(result: SearchResult, k: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids and scores of the first k, by descending score and then by order of ties."""
    ids = ranks = result.item_ids
    if len(order):
        ranks = torch.where(ids < len(order), order[ids.clamp(0, len(order) - 1)], ids)
    chosen = torch.topk(encode(result.scores, ranks), k).indices
    return ids.gather(1, chosen), result.scores.gather(1, chosen)


def _of_rows(exclude: Exclusions | None, rows: Tensor) -> Exclusions | None:
    """Return the exclusions of some rows, renumbered from 0."""
    if exclude is None:
        return None
    lengths = exclude.offsets.diff()[rows]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    shift = torch.repeat_interleave(exclude.offsets[:-1][rows] - offsets[:-1], lengths)
    positions = torch.arange(len(shift), device=shift.device) + shift
    return Exclusions(exclude.item_ids[positions], offsets)
