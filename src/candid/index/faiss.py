"""Search by FAISS: every inner product, or those of the nearest lists alone.

FAISS (Douze et al. 2024, "The Faiss library") works on the CPU; vectors of another device are
copied there and the results back. Scores are those of its float32 products.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ConfigError
from candid.index.checks import (
    check_item_vectors,
    check_search,
    diverged_items,
    diverged_queries,
)
from candid.index.protocol import Exclusions, Hits, IndexConfig

SURPLUS = 64
"""Items asked for beyond k where some are excluded; rows that need more are asked again."""


class FaissIndex:
    """An index of FAISS, by inner product.

    "flat" computes every product. "ivf" sorts the items into lists around centres of a k-means
    and looks at the ``num_probes`` lists nearest to the query: a fraction of the work, and some
    items are missed, which for a proposal's head costs nothing but closeness. It may find fewer
    than k items even where there are more.

    Threads are those of torch at the time of each call.

    Args:
        item_vectors: [V, D] float32; copied.
        kind: "flat" or "ivf".
        num_lists: lists of "ivf"; None for about the square root of V.
        num_probes: lists that a search looks at, all where there are fewer.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: FAISS is not installed, vectors that are not a matrix with V, D ≥ 1, more
            lists than items, or a number below 1.
        ArtifactError: a vector is not finite.
    """

    class Config(IndexConfig):
        """Settings of a FAISS index."""

        kind: Literal["flat", "ivf"] = Field(
            "ivf", description="flat: every inner product; ivf: those of the nearest lists"
        )
        num_lists: int | None = Field(
            None, ge=1, description="lists of ivf; 'none': about the square root of the catalog"
        )
        num_probes: int = Field(16, ge=1, description="lists of ivf that a search looks at")

        def build(self, item_vectors: Tensor) -> FaissIndex:
            """Make the index over ``item_vectors`` [V, D]."""
            return FaissIndex(item_vectors, self.kind, self.num_lists, self.num_probes)

    def __init__(
        self,
        item_vectors: Tensor,
        kind: Literal["flat", "ivf"] = "ivf",
        num_lists: int | None = None,
        num_probes: int = 16,
    ) -> None:
        check_item_vectors(item_vectors)
        self.num_items, self._dim = item_vectors.shape
        num_lists = math.isqrt(self.num_items) if num_lists is None else num_lists
        if not 1 <= num_lists <= self.num_items:
            raise ConfigError(
                f"num_lists must be between 1 and the {self.num_items} items of the catalog, got "
                f"{num_lists}"
            )
        if num_probes < 1:
            raise ConfigError(f"num_probes must be at least 1, got {num_probes}")
        if not bool(torch.isfinite(item_vectors).all()):
            raise diverged_items()
        faiss = _faiss()
        vectors = _array(item_vectors)
        if kind == "flat":
            self._index: Any = faiss.IndexFlatIP(self._dim)
        else:
            self._index = faiss.IndexIVFFlat(
                faiss.IndexFlatIP(self._dim), self._dim, num_lists, faiss.METRIC_INNER_PRODUCT
            )
            # Lists of few items are fine here; FAISS would print a warning for each training.
            self._index.cp.min_points_per_centroid = 1
            self._index.nprobe = min(num_probes, num_lists)
            self._index.train(vectors)
        self._index.add(vectors)

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> Hits:
        """Find the k items of largest inner product, as far as the kind finds them.

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
        _faiss()
        vectors = _array(query)
        if exclude is None:
            ids, scores = self._nearest(vectors, k)
        else:
            ids, scores = self._allowed(vectors, k, _Excluded(exclude, self.num_items))
        return Hits(
            torch.from_numpy(ids).to(query.device), torch.from_numpy(scores).to(query.device)
        )

    def _nearest(
        self, query: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Ids, -1 where none, and scores, -inf there: [b, k]."""
        scores, ids = self._index.search(query, k)
        return ids, np.where(ids < 0, np.float32(-np.inf), scores)

    def _allowed(
        self, query: npt.NDArray[np.float32], k: int, excluded: _Excluded
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """As ``_nearest``, without what is excluded: ask for more until k are allowed."""
        ids = np.full((len(query), k), -1, dtype=np.int64)
        scores = np.full((len(query), k), -np.inf, dtype=np.float32)
        rows, width = np.arange(len(query)), min(k + SURPLUS, self.num_items)
        while len(rows):
            found, found_scores = self._nearest(query[rows], width)
            allowed = (found >= 0) & ~excluded.contains(rows, found)
            order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
            kept = np.take_along_axis(allowed, order, axis=1)
            ids[rows] = np.where(kept, np.take_along_axis(found, order, axis=1), -1)
            scores[rows] = np.where(kept, np.take_along_axis(found_scores, order, axis=1), -np.inf)
            # A row is done with k items, or once it was given all that the index finds for it.
            rows = rows[~kept.all(axis=1) & (found[:, -1] >= 0) & (width < self.num_items)]
            width = min(2 * width, self.num_items)
        return ids, scores


class _Excluded:
    """Which (row, item) pairs are excluded."""

    def __init__(self, exclude: Exclusions, num_items: int) -> None:
        lengths = exclude.offsets.diff().cpu().numpy()
        first, last = int(exclude.offsets[0]), int(exclude.offsets[-1])
        rows = np.repeat(np.arange(len(lengths)), lengths)
        self._num_items = num_items
        self._pairs = np.unique(rows * num_items + exclude.item_ids[first:last].cpu().numpy())

    def contains(
        self, rows: npt.NDArray[np.int64], item_ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Of the items [b, n] of rows [b]; anything where the id is -1."""
        return np.isin(rows[:, None] * self._num_items + item_ids, self._pairs)


def _faiss() -> ModuleType:
    """The library, told to use as many threads as torch does.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "index 'faiss' needs FAISS, which is not installed: pip install 'candid[index]'"
        ) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    module: ModuleType = faiss
    return module


def _array(vectors: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(vectors.detach().float().cpu().numpy())
