"""The base of approximate indexes: exclusions, and exact ranking of candidates.

An approximate index selects candidates; their inner products are then computed from the float32
vectors, which may be mapped from disk, and the best are returned. Excluded items are removed from
the candidates, and a row with too few results is searched again with twice as many candidates.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.index.checks import (
    check_finite_items,
    check_item_vectors,
    check_search,
    diverged_queries,
)
from candid.index.order import decode, encode
from candid.index.protocol import Exclusions, Index, SearchResult
from candid.index.rerank_pass import NativeRerank, native_rerank_for, rerank

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SURPLUS = 64
"""Candidates beyond k, at most, if as many items are excluded; rows that need more are searched
again."""
GATHERED = 1 << 17
"""Numbers gathered at a time for exact ranking: half a MiB, which stays in the cache of a CPU."""


MAX_LENGTH = 1.25
"""Largest length of an item, as a multiple of the mean, at which graphs use distances."""


class ApproximateIndex(Index):
    """Base of indexes that select candidates.

    Args:
        item_vectors: [V, D] float32; not copied if they are on the CPU.
        is_checked: whether the caller has checked that the vectors are finite.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: vectors that are not a matrix with V, D ≥ 1.
        ArtifactError: a vector is not finite.
    """

    def __init__(self, item_vectors: Tensor, *, is_checked: bool = False) -> None:
        check_item_vectors(item_vectors)
        if not is_checked:
            check_finite_items(item_vectors)
        self.num_items, self._dim = item_vectors.shape
        self._vectors = item_vectors.detach().float().cpu()

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k items of largest inner product among the candidates.

        Args:
            query: [B, D] float32.
            k: results per query, 1 ≤ k ≤ V.
            exclude: items to leave out, packed, in any order and with repeats, or None.

        Returns:
            [B, K] ids (-1 where the index found no more) and scores, best first.

        Raises:
            ConfigError: k is outside 1..V, or the queries are not as wide as the items.
            ArtifactError: a query is not finite.
        """
        check_search(query, k, self.num_items, self._dim)
        if not bool(torch.isfinite(query).all()):
            raise diverged_queries()
        vectors = to_array(query)
        with torch.inference_mode():
            if exclude is None:
                ids, scores = self._search_all(vectors, k)
            else:
                pairs = _ExcludedPairs(exclude, self.num_items)
                ids, scores = self._search_allowed(vectors, k, pairs)
        return SearchResult(
            torch.from_numpy(ids).to(query.device), torch.from_numpy(scores).to(query.device)
        )

    def with_settings(self, **settings: float) -> Self:
        """Return the same index with other settings of the search; the data are shared.

        Raises:
            ConfigError: the search has no such setting.
        """
        other = copy.copy(self)
        for name, value in settings.items():
            if name not in self.tuning_axes(1):
                raise ConfigError(f"a search of {type(self).__name__} has no setting {name!r}")
            setattr(other, name, value)
        return other

    def settings(self) -> Mapping[str, Any]:
        """Return the settings of the search."""
        return {name: getattr(self, name) for name in self.tuning_axes(1)}

    @abstractmethod
    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        """Return items to rank exactly for k results of each query: [b, C], -1 where missing.

        Args:
            query: [b, D].
            k: results per query.
            spare: additional candidates, since some may be excluded.
        """

    def _search_all(self, query: Floats, k: int, spare: int = 0) -> tuple[Ints, Floats]:
        """Return ids [b, k + spare], -1 where missing, and scores, -inf there; best first."""
        return self._rank(query, self._candidates(query, k, spare), k + spare)

    def _search_allowed(
        self, query: Floats, k: int, excluded: _ExcludedPairs
    ) -> tuple[Ints, Floats]:
        """Search without the excluded items; widen the search until k are allowed."""
        ids = np.full((len(query), k), -1, dtype=np.int64)
        scores = np.full((len(query), k), -np.inf, dtype=np.float32)
        rows = np.arange(len(query))
        spare = min(excluded.max_per_row, SURPLUS, self.num_items - k)
        while len(rows):
            ids[rows], scores[rows], may_find_more = self._search_rows(
                query[rows], k, spare, rows, excluded
            )
            # A row is complete with k items, or when the index has returned all that it finds.
            is_short = (ids[rows, -1] < 0) & may_find_more & (k + spare < self.num_items)
            rows = rows[is_short]
            spare = min(2 * (k + spare), self.num_items) - k
        return ids, scores

    def _search_rows(
        self, query: Floats, k: int, spare: int, rows: Ints, excluded: _ExcludedPairs
    ) -> tuple[Ints, Floats, Bools]:
        """Return ids, scores, and whether the index may find more, of some rows."""
        native = self._native_rerank()
        if native is not None:
            candidates = self._candidates(query, k, spare)
            ids, scores = rerank(
                native, self._vectors, query, candidates, k, excluded.of_rows(rows)
            )
            return ids, scores, candidates[:, -1] >= 0
        ids, scores = self._search_all(query, k, spare)
        is_allowed = (ids >= 0) & ~excluded.contains(rows, ids)
        order = np.argsort(~is_allowed, axis=1, kind="stable")[:, :k]
        mask = np.take_along_axis(is_allowed, order, axis=1)
        return (
            np.where(mask, np.take_along_axis(ids, order, axis=1), -1),
            np.where(mask, np.take_along_axis(scores, order, axis=1), -np.inf),
            ids[:, -1] >= 0,
        )

    def _native_rerank(self) -> NativeRerank | None:
        """Return the native kernel for exact ranking by inner product, if it applies."""
        return native_rerank_for(self._vectors)

    def _rank(self, query: Floats, candidates: Ints, k: int) -> tuple[Ints, Floats]:
        """Return the k best of candidates [b, C] (-1: missing; distinct in a row)."""
        num_rows, num_candidates = candidates.shape
        if (native := self._native_rerank()) is not None:
            return rerank(native, self._vectors, query, candidates, k)
        scores = np.empty((num_rows, num_candidates), dtype=np.float32)
        step = max(1, GATHERED // max(1, num_candidates * self._dim))
        for begin in range(0, num_rows, step):
            rows = slice(begin, begin + step)
            scores[rows] = self._scores(query[rows], np.maximum(candidates[rows], 0))
        scores[candidates < 0] = -np.inf
        keys = encode(torch.from_numpy(scores), torch.from_numpy(candidates))
        best_ids, best_scores = decode(torch.topk(keys, min(k, num_candidates)).values)
        if k <= num_candidates:
            return best_ids.numpy(), best_scores.numpy()
        missing = ((0, 0), (0, k - num_candidates))
        return (
            np.pad(best_ids.numpy(), missing, constant_values=-1),
            np.pad(best_scores.numpy(), missing, constant_values=-np.inf),
        )

    def _scores(self, query: Floats, item_ids: Ints) -> Floats:
        """Return exact scores of items [b, C] of queries [b, D]."""
        vectors = self._vectors.numpy().take(item_ids.ravel(), axis=0)
        # Many small products: einsum is several times faster here than a batched BLAS call.
        scores: Floats = np.einsum("bcd,bd->bc", vectors.reshape(*item_ids.shape, -1), query)
        return scores

    def _num_candidates(self, k: int, spare: int, oversample: float) -> int:
        """Return the number of candidates for k results and some spare ones."""
        return min(self.num_items, max(k, math.ceil(k * oversample)) + spare)


class _ExcludedPairs:
    """The excluded (row, item) pairs of a search.

    Attributes:
        max_per_row: largest number of items excluded from one row.
    """

    def __init__(self, exclude: Exclusions, num_items: int) -> None:
        lengths = exclude.offsets.diff().cpu().numpy()
        first, last = int(exclude.offsets[0]), int(exclude.offsets[-1])
        rows = np.repeat(np.arange(len(lengths)), lengths)
        self.max_per_row = int(lengths.max(initial=0))
        self._num_items = num_items
        self._pairs = np.unique(rows * num_items + exclude.item_ids[first:last].cpu().numpy())

    def of_rows(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the items [n] excluded from rows [b], ascending in each, and offsets [b + 1]."""
        ends = np.searchsorted(self._pairs, np.append(rows, rows[-1] + 1) * self._num_items)
        if len(rows) == rows[-1] + 1 - rows[0]:
            return self._pairs[ends[0] : ends[-1]] % self._num_items, ends - ends[0]
        stops = np.searchsorted(self._pairs, (rows + 1) * self._num_items)
        parts = [self._pairs[a:b] for a, b in zip(ends[:-1], stops, strict=True)]
        return (
            np.concatenate(parts) % self._num_items,
            np.append(0, (stops - ends[:-1]).cumsum()),
        )

    def contains(self, rows: Ints, item_ids: Ints) -> Bools:
        """Return a mask of the excluded items [b, n] of rows [b]; undefined for id -1."""
        if len(self._pairs) == 0:
            return np.zeros(item_ids.shape, dtype=np.bool_)
        keys = rows[:, None] * self._num_items + item_ids
        positions = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        is_excluded: Bools = self._pairs[positions] == keys
        return is_excluded


def geometric_steps(first: int, last: int, ratio: float) -> list[int]:
    """Return integers from ``first`` to ``last``, each about ``ratio`` times the one before."""
    steps = max(1, round(math.log(max(last / first, 1)) / math.log(ratio)))
    return sorted({round(first * (last / first) ** (i / steps)) for i in range(steps + 1)})


def to_array(vectors: Tensor) -> Floats:
    """Return a contiguous float32 array of the same shape on the CPU."""
    return np.ascontiguousarray(vectors.detach().float().cpu().numpy())


def augment_items(vectors: Floats) -> Floats:
    """Return item vectors [V, D + 1] whose Euclidean neighbours are the largest inner products.

    The added coordinate brings every item to the length of the longest, so that
    ‖q - v‖² = ‖q‖² + max‖v‖² - 2 q·v for a query with a zero there (Bachrach et al. 2014,
    "Speeding up the Xbox recommender system using a Euclidean transformation").
    """
    squares = np.einsum("vd,vd->v", vectors, vectors, dtype=np.float64)
    rest = np.sqrt(np.maximum(squares.max() - squares, 0.0))
    return np.concatenate([vectors, rest[:, None].astype(np.float32)], axis=1)


def augment_queries(query: Floats) -> Floats:
    """Return queries [B, D + 1] for a search among ``augment_items``."""
    return np.pad(query, ((0, 0), (0, 1)))


def scale_rows(vectors: Floats, length: float) -> Floats:
    """Return vectors [B, D] of one length; zero vectors stay.

    The squared distance of a short query to an item differs from ‖v‖² by less than the rounding of
    the item, so that all items are equally far. The order of products does not depend on the length
    of the query.
    """
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors * (length / np.where(norms > 0, norms, 1))).astype(np.float32)


def has_similar_norms(vectors: Tensor) -> bool:
    """Return whether ``augment_items`` keeps the vectors apart.

    If a few items are longer than most, the added coordinate dominates all other items, and a
    graph cannot separate them. At 5,000 items × 64 without structure, recall@10 by distances is
    0.98 where the longest item is 1.2 times as long as the mean, 0.86 at 1.4 and 0.36 at 2; by
    products it is 0.99.
    """
    norms = vectors.detach().float().norm(dim=1)
    return bool(norms.max() <= MAX_LENGTH * norms.mean())
