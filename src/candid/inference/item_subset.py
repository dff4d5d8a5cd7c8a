"""Exact search over a part of the catalog, under the item ids of the whole catalog."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.batches import offsets_of
from candid.index import ExactIndex, Exclusions, SearchResult

Bools = npt.NDArray[np.bool_]


class ItemSubset:
    """The included items of a catalog and an exact index over their vectors.

    Args:
        item_vectors: [V, D] float32, of the whole catalog.
        is_included: [V] bool; at least one item is included.

    Attributes:
        num_items: n, how many items are included.
        item_vectors: [n, D] float32, of the included items.
    """

    def __init__(self, item_vectors: Tensor, is_included: Bools) -> None:
        self._ids: Tensor | None = None
        self.item_vectors = item_vectors
        if not is_included.all():
            ids = torch.from_numpy(np.flatnonzero(is_included)).to(item_vectors.device)
            self.item_vectors = item_vectors[ids]
            self._ids = ids
            self._positions = torch.full_like(torch.from_numpy(is_included), -1, dtype=torch.int64)
            self._positions = self._positions.to(item_vectors.device)
            self._positions[ids] = torch.arange(len(ids), device=item_vectors.device)
        self.num_items = len(self.item_vectors)
        self._index = ExactIndex(self.item_vectors)

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k included items of largest inner product.

        Args:
            query: [B, D] float32.
            k: results per query, at most the number of included items.
            exclude: items to leave out, included or not; None: none.

        Returns:
            ids in the whole catalog and scores, [B, k], best first; -1 and -inf after the end of
            a shorter row.
        """
        return self._in_catalog(self._index.search(query, k, self._within(exclude)))

    def search_with_log_partition(
        self, query: Tensor, k: int, exclude: Exclusions | None = None
    ) -> tuple[SearchResult, Tensor]:
        """Search, and compute log Σ_d exp(q · v_d) over all included items from the same scores.

        Args:
            query: [B, D] float32.
            k: results per query, at most the number of included items.
            exclude: items that the results leave out; they count in the sum.

        Returns:
            the result of ``search``, and [B] float64.
        """
        within = self._within(exclude)
        result, log_z = self._index.search_with_log_partition(query, k, within)
        return self._in_catalog(result), log_z

    def equal_scores(
        self, query: Tensor, scores: Tensor, exclude: Exclusions | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Find all included items that have a given score.

        Args:
            query: [B, D] float32.
            scores: [B] float32, such as a score that ``search`` returned for each query.
            exclude: items that never count, included or not; None: none.

        Yields:
            Block by block: ids [m] int64, ascending, and [B, m] bool, whether the item has the
            score of the query and is not excluded.
        """
        for positions, is_equal in self._index.equal_scores(query, scores, self._within(exclude)):
            yield positions if self._ids is None else self._ids[positions], is_equal

    def positions_of(self, item_ids: Tensor) -> Tensor:
        """Return the row of ``item_vectors`` of each item [m], -1 for items not included."""
        return item_ids if self._ids is None else self._positions[item_ids]

    def _in_catalog(self, result: SearchResult) -> SearchResult:
        """Replace the positions of included items by their ids."""
        if self._ids is None:
            return result
        item_ids = torch.where(result.item_ids < 0, -1, self._ids[result.item_ids])
        return SearchResult(item_ids, result.scores)

    def _within(self, exclude: Exclusions | None) -> Exclusions | None:
        """Return the exclusions that are included items, by position."""
        if exclude is None or self._ids is None:
            return exclude
        positions = self.positions_of(exclude.item_ids)
        mask = (positions >= 0).cpu().numpy()
        lengths = exclude.offsets.diff().cpu().numpy()
        rows = np.repeat(np.arange(len(lengths)), lengths)
        offsets = offsets_of(np.bincount(rows[mask], minlength=len(lengths)))
        return Exclusions(positions[positions >= 0], torch.from_numpy(offsets).to(positions.device))
