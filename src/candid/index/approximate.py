"""What approximate indexes share: exclusions they do not know, and an exact second look.

An approximate index names candidates; their inner products are then computed from the float32
vectors, which may be mapped from disk, and the best are kept. Excluded items are dropped from
what was found, and a row that comes out short is asked again for twice as many.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.index.checks import (
    check_item_vectors,
    check_search,
    diverged_items,
    diverged_queries,
)
from candid.index.order import decode, encode
from candid.index.protocol import Exclusions, SearchResult
from candid.index.rerank_pass import NativeRerank, best_of, native_rerank_for

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SURPLUS = 64
"""Items asked for beyond k where so many are excluded; rows that need more are asked again."""
GATHERED = 1 << 17
"""Numbers gathered at once for the second look: half a MiB, which stays in a CPU's cache."""


@runtime_checkable
class TunableIndex(Protocol):
    """An index whose searches can be made more exact and slower, or the other way round."""

    def axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Settings of the search worth trying, by config key; each ascending in cost."""
        ...

    def with_settings(self, **settings: float) -> Self:
        """The same index, not a copy of it, that searches with other settings."""
        ...


class ApproximateIndex(ABC):
    """Base of the indexes that name candidates.

    Args:
        item_vectors: [V, D] float32; kept as they are where they are on the CPU, not copied.
        is_checked: that the vectors are finite is known already.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: vectors that are not a matrix with V, D ≥ 1.
        ArtifactError: a vector is not finite.
    """

    def __init__(self, item_vectors: Tensor, is_checked: bool = False) -> None:
        check_item_vectors(item_vectors)
        if not is_checked and not bool(torch.isfinite(item_vectors).all()):
            raise diverged_items()
        self.num_items, self._dim = item_vectors.shape
        self._vectors = item_vectors.detach().float().cpu()

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k items of largest inner product, as far as the index finds them.

        Args:
            query: [B, D] float32.
            k: results a query, 1 ≤ k ≤ V.
            exclude: items to leave out, packed, in any order and with repeats, or None.

        Returns:
            [B, K] ids (-1 where no more were found) and scores, best first.

        Raises:
            ConfigError: k outside 1..V, or a query of another width than the items.
            ArtifactError: a query is not finite.
        """
        check_search(query, k, self.num_items, self._dim)
        if not bool(torch.isfinite(query).all()):
            raise diverged_queries()
        vectors = array(query)
        with torch.inference_mode():
            if exclude is None:
                ids, scores = self._best(vectors, k)
            else:
                ids, scores = self._allowed(vectors, k, _Excluded(exclude, self.num_items))
        return SearchResult(
            torch.from_numpy(ids).to(query.device), torch.from_numpy(scores).to(query.device)
        )

    @abstractmethod
    def _candidates(self, query: Floats, k: int, spare: int) -> Ints:
        """Items worth a second look for k results of each query: [b, C], -1 where none.

        As many more as ``spare`` than k results want, for some may be dropped.
        """

    def _best(self, query: Floats, k: int, spare: int = 0) -> tuple[Ints, Floats]:
        """Ids [b, k + spare], -1 where none, and scores, -inf there; best first."""
        return self._reranked(query, self._candidates(query, k, spare), k + spare)

    def _allowed(self, query: Floats, k: int, excluded: _Excluded) -> tuple[Ints, Floats]:
        """As ``_best``, without what is excluded: ask for more until k are allowed."""
        ids = np.full((len(query), k), -1, dtype=np.int64)
        scores = np.full((len(query), k), -np.inf, dtype=np.float32)
        rows, spare = np.arange(len(query)), min(excluded.most, SURPLUS, self.num_items - k)
        while len(rows):
            ids[rows], scores[rows], may_be_more = self._without(
                query[rows], k, spare, rows, excluded
            )
            # A row is done with k items, or once it was given all that the index finds for it.
            is_short = (ids[rows, -1] < 0) & may_be_more & (k + spare < self.num_items)
            rows = rows[is_short]
            spare = min(2 * (k + spare), self.num_items) - k
        return ids, scores

    def _without(
        self, query: Floats, k: int, spare: int, rows: Ints, excluded: _Excluded
    ) -> tuple[Ints, Floats, Bools]:
        """The best of some rows without what is excluded, and whether the index may find more."""
        native = self._native_rerank()
        if native is not None:
            candidates = self._candidates(query, k, spare)
            found = best_of(native, self._vectors, query, candidates, k, excluded.of_rows(rows))
            return *found, candidates[:, -1] >= 0
        ids, scores = self._best(query, k, spare)
        allowed = (ids >= 0) & ~excluded.contains(rows, ids)
        order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(allowed, order, axis=1)
        return (
            np.where(kept, np.take_along_axis(ids, order, axis=1), -1),
            np.where(kept, np.take_along_axis(scores, order, axis=1), -np.inf),
            ids[:, -1] >= 0,
        )

    def _native_rerank(self) -> NativeRerank | None:
        """Machine code for the second look, where it is one by inner products."""
        return native_rerank_for(self._vectors)

    def _reranked(self, query: Floats, candidates: Ints, k: int) -> tuple[Ints, Floats]:
        """The k best of candidates [b, C] (-1: none, distinct in a row) by inner products."""
        num_rows, num_candidates = candidates.shape
        if (native := self._native_rerank()) is not None:
            return best_of(native, self._vectors, query, candidates, k)
        scores = np.empty((num_rows, num_candidates), dtype=np.float32)
        step = max(1, GATHERED // max(1, num_candidates * self._dim))
        for begin in range(0, num_rows, step):
            rows = slice(begin, begin + step)
            scores[rows] = self._scores(query[rows], np.maximum(candidates[rows], 0))
        scores[candidates < 0] = -np.inf
        keys = encode(torch.from_numpy(scores), torch.from_numpy(candidates))
        best_ids, best = decode(torch.topk(keys, min(k, num_candidates)).values)
        if k <= num_candidates:
            return best_ids.numpy(), best.numpy()
        missing = ((0, 0), (0, k - num_candidates))
        return (
            np.pad(best_ids.numpy(), missing, constant_values=-1),
            np.pad(best.numpy(), missing, constant_values=-np.inf),
        )

    def _scores(self, query: Floats, item_ids: Ints) -> Floats:
        """Exact scores of items [b, C] of queries [b, D]."""
        vectors = self._vectors.numpy().take(item_ids.ravel(), axis=0)
        # Many small products: einsum is several times faster at them than a batched BLAS call.
        scores: Floats = np.einsum("bcd,bd->bc", vectors.reshape(*item_ids.shape, -1), query)
        return scores

    def _width(self, k: int, spare: int, oversample: float) -> int:
        """Candidates for k results and some to spare."""
        return min(self.num_items, max(k, math.ceil(k * oversample)) + spare)

    def with_settings(self, **settings: float) -> Self:
        """The same index that searches with other settings; see ``TunableIndex``.

        Raises:
            ConfigError: the search has no such setting.
        """
        other = copy.copy(self)
        for name, value in settings.items():
            if name not in self.axes(1):
                raise ConfigError(f"a search of this index has no setting {name!r}")
            setattr(other, name, value)
        return other

    def axes(self, k: int) -> Mapping[str, Sequence[float]]:
        """Settings of the search worth trying; none, unless the index has some."""
        return {}


class _Excluded:
    """Which (row, item) pairs are excluded.

    Attributes:
        most: items excluded from one row.
    """

    def __init__(self, exclude: Exclusions, num_items: int) -> None:
        lengths = exclude.offsets.diff().cpu().numpy()
        first, last = int(exclude.offsets[0]), int(exclude.offsets[-1])
        rows = np.repeat(np.arange(len(lengths)), lengths)
        self.most = int(lengths.max(initial=0))
        self._num_items = num_items
        self._pairs = np.unique(rows * num_items + exclude.item_ids[first:last].cpu().numpy())

    def of_rows(self, rows: Ints) -> tuple[Ints, Ints]:
        """Items excluded from some rows, ascending in each, and where each row's begin."""
        ends = np.searchsorted(self._pairs, np.append(rows, rows[-1] + 1) * self._num_items)
        if len(rows) == rows[-1] + 1 - rows[0]:
            return self._pairs[ends[0] : ends[-1]] % self._num_items, ends - ends[0]
        stops = np.searchsorted(self._pairs, (rows + 1) * self._num_items)
        parts = [self._pairs[a:b] for a, b in zip(ends[:-1], stops, strict=True)]
        return (
            np.concatenate(parts) % self._num_items,
            np.append(0, (stops - ends[:-1]).cumsum()),
        )

    def contains(self, rows: Ints, item_ids: Ints) -> npt.NDArray[np.bool_]:
        """Of the items [b, n] of rows [b]; anything where the id is -1."""
        if len(self._pairs) == 0:
            return np.zeros(item_ids.shape, dtype=np.bool_)
        keys = rows[:, None] * self._num_items + item_ids
        at = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        found: npt.NDArray[np.bool_] = self._pairs[at] == keys
        return found


def ladder(first: int, last: int, ratio: float) -> list[int]:
    """Whole numbers from ``first`` to ``last``, each about ``ratio`` times the one before."""
    steps = max(1, round(math.log(max(last / first, 1)) / math.log(ratio)))
    return sorted({round(first * (last / first) ** (i / steps)) for i in range(steps + 1)})


def array(vectors: Tensor) -> Floats:
    """As a contiguous float32 array on the CPU."""
    return np.ascontiguousarray(vectors.detach().float().cpu().numpy())


def augmented_items(vectors: Floats) -> Floats:
    """Item vectors [V, D + 1] whose Euclidean neighbours are the largest inner products.

    The added coordinate brings every item to the length of the longest, so that
    ‖q - v‖² = ‖q‖² + max‖v‖² - 2 q·v for a query with a zero there (Bachrach et al. 2014,
    "Speeding up the Xbox recommender system using a Euclidean transformation").
    """
    squares = np.einsum("vd,vd->v", vectors, vectors, dtype=np.float64)
    rest = np.sqrt(np.maximum(squares.max() - squares, 0.0))
    return np.concatenate([vectors, rest[:, None].astype(np.float32)], axis=1)


def augmented_queries(query: Floats) -> Floats:
    """Queries [B, D + 1] to ask among ``augmented_items``."""
    return np.pad(query, ((0, 0), (0, 1)))


def norms_are_alike(vectors: Tensor) -> bool:
    """Whether the added coordinate of ``augmented_items`` would leave the others their say.

    Where few items are far longer than most, that coordinate is nearly all of every other item,
    and they all lie together.
    """
    norms = vectors.detach().float().norm(dim=1)
    return bool(norms.max() <= 2.0 * norms.mean())
