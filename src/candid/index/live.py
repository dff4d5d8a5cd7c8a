"""Additions, updates and deletions of items beside a built index, during searches.

The built index never changes. Its deleted and updated items are hidden: a search requests more
items than needed and drops the hidden ones; rows that end up too short are searched again with
twice as many. New and updated vectors are stored in separate rows, which are searched exactly and
merged. So every index supports changes, also those that cannot delete (HNSW), and the cost grows
only with the changes: one inner product per added row. Rebuild the index when they are many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.index.changes import Changes
from candid.index.checks import check_search, diverged_items, diverged_queries
from candid.index.order import decode, encode
from candid.index.protocol import Exclusions, Index, SearchResult

SURPLUS = 16
"""Items requested beyond k: of the built index if some are hidden, of the added rows always."""


class LiveIndex:
    """A built index together with later changes.

    Threads may search while other threads change it: a search sees a change completely or not
    at all. Ids are never reused: ``num_items`` counts deleted items too, and a search does not
    return them.

    Args:
        built: the index over ``item_vectors``.
        item_vectors: [V, D] float32; not copied.
        changes: made before; None: no changes.

    Raises:
        ConfigError: the index contains another number of items.

    Example:
        >>> from candid.index import ExactIndex
        >>> index = LiveIndex(ExactIndex(torch.eye(3)), torch.eye(3))
        >>> index.add(torch.ones(1, 3))
        tensor([3])
        >>> index.search(torch.tensor([[1.0, 2.0, 0.0]]), k=2).item_ids
        tensor([[3, 1]])
    """

    def __init__(
        self, built: Index, item_vectors: Tensor, *, changes: Changes | None = None
    ) -> None:
        if built.num_items != len(item_vectors):
            raise ConfigError(
                f"the index contains {built.num_items} items, got {len(item_vectors)} vectors"
            )
        self.built = built
        self.item_vectors = item_vectors
        device = item_vectors.device
        self._changes = changes or Changes(
            num_items=built.num_items,
            hidden=torch.zeros(built.num_items, dtype=torch.bool, device=device),
            num_hidden=0,
            item_ids=torch.empty(0, dtype=torch.int64, device=device),
            vectors=item_vectors.new_empty(0, item_vectors.shape[1], dtype=torch.float32),
            is_alive=torch.empty(0, dtype=torch.bool, device=device),
        )
        # Buffers with spare rows at the end, which no search reads.
        self._id_buffer = self._changes.item_ids
        self._vector_buffer = self._changes.vectors
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Return the built index and the numbers of items."""
        return f"LiveIndex({self.built!r}, num_items={self.num_items}, num_live={self.num_live})"

    @property
    def num_items(self) -> int:
        """Ids in use, deleted ones included."""
        return self._changes.num_items

    @property
    def num_live(self) -> int:
        """Number of items that a search may find."""
        return self._changes.num_live

    @property
    def changes(self) -> Changes:
        """The changes so far."""
        return self._changes

    def add(self, vectors: Tensor) -> Tensor:
        """Add items.

        Args:
            vectors: [n, D] float32.

        Returns:
            Their ids, [n] int64: the next ones after those in use.

        Raises:
            ConfigError: vectors of another width.
            ArtifactError: a vector is not finite.
        """
        vectors = self._check_vectors(vectors)
        with self._lock:
            first = self._changes.num_items
            item_ids = torch.arange(first, first + len(vectors), device=vectors.device)
            self._append(item_ids, vectors, num_items=first + len(vectors))
        return item_ids

    def update(self, item_ids: Tensor, vectors: Tensor) -> None:
        """Replace the vectors of items; a deleted item becomes live again.

        Args:
            item_ids: [n] int64, distinct.
            vectors: [n, D] float32.

        Raises:
            ConfigError: an id is not in use or given twice, or vectors of another number or width.
            ArtifactError: a vector is not finite.
        """
        self._put(item_ids, vectors, may_add=False)

    def put(
        self, item_ids: Tensor, vectors: Tensor, before: Callable[[], None] | None = None
    ) -> None:
        """Update items and, where ids are the next ones, add them, in one step.

        Args:
            item_ids: [n] int64, distinct.
            vectors: [n, D] float32.
            before: called after all checks and before searches see the change.

        Raises:
            ConfigError: an id is neither in use nor one of the next, or given twice, or vectors
                of another number or width.
            ArtifactError: a vector is not finite.
        """
        self._put(item_ids, vectors, may_add=True, before=before)

    def _put(
        self,
        item_ids: Tensor,
        vectors: Tensor,
        may_add: bool,
        before: Callable[[], None] | None = None,
    ) -> None:
        vectors = self._check_vectors(vectors)
        item_ids = item_ids.to(vectors.device, torch.int64)
        if item_ids.shape != vectors.shape[:1] or len(item_ids.unique()) != len(item_ids):
            raise ConfigError(
                f"an update needs distinct items and one vector for each, got "
                f"{list(item_ids.shape)} ids and {list(vectors.shape)} vectors"
            )
        with self._lock:
            in_use = self._changes.num_items
            after = in_use + int((item_ids >= in_use).sum()) if may_add else in_use
            _check_ids(item_ids, after)
            if before is not None:
                before()
            self._append(item_ids, vectors, after)

    def delete(self, item_ids: Tensor) -> None:
        """Delete items; deleting a deleted item has no effect.

        Args:
            item_ids: [n] int64.

        Raises:
            ConfigError: an id is not in use.
        """
        item_ids = item_ids.to(self.item_vectors.device, torch.int64)
        with self._lock:
            _check_ids(item_ids, self._changes.num_items)
            self._changes = self._changes.without(item_ids)

    def is_live(self, item_ids: Tensor) -> Tensor:
        """Return whether a search may find each item: [m] bool."""
        return self._changes.is_live(item_ids.to(self.item_vectors.device))

    def vectors_of(self, item_ids: Tensor) -> Tensor:
        """Return the vectors of live items: [m, D] float32.

        Raises:
            ConfigError: an item is deleted or unknown.
        """
        changes = self._changes
        item_ids = item_ids.to(self.item_vectors.device)
        is_live = changes.is_live(item_ids)
        if not bool(is_live.all()):
            raise ConfigError(f"item id {int(item_ids[~is_live][0])} is not in the index")
        rows = changes.rows_of(item_ids)
        is_added = rows >= 0
        vectors = self.item_vectors.new_empty(len(item_ids), self.item_vectors.shape[1])
        vectors[is_added] = changes.vectors[rows[is_added]]
        vectors[~is_added] = self.item_vectors[item_ids[~is_added]]
        return vectors

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k live items of largest inner product.

        Args:
            query: [B, D] float32.
            k: results per query, 1 ≤ k ≤ ``num_items``.
            exclude: items to leave out, packed, in any order and with repeats, or None.

        Returns:
            [B, K] ids (-1 where fewer than k items are live and allowed) and scores, best first.

        Raises:
            ConfigError: k is outside its bounds, or the queries are not as wide as the items.
            ArtifactError: a query is not finite.
        """
        changes = self._changes
        check_search(query, k, changes.num_items, self.item_vectors.shape[1])
        with torch.no_grad():
            built = self._search_built(changes, query.detach().float(), k, exclude)
            if changes.num_rows == 0:
                return built
            added = _search_added(changes, query.detach().float(), k, exclude)
            keys = [encode(result.scores, result.item_ids) for result in (built, added)]
            best = torch.topk(torch.cat(keys, dim=1), k).values
            return SearchResult(*decode(best))

    def search_with_log_partition(
        self, query: Tensor, k: int, exclude: Exclusions | None = None
    ) -> tuple[SearchResult, Tensor | None]:
        """Search, and compute log Σ exp(q · v) over all live items, excluded ones included.

        Returns:
            the result of ``search``, and [B] float64, or None where the built index does not score
            every item or there are changes: then it takes another pass over the vectors.
        """
        changes = self._changes
        if changes.num_hidden or changes.num_rows or k > self.built.num_items:
            return self.search(query, k, exclude), None
        check_search(query, k, changes.num_items, self.item_vectors.shape[1])
        with torch.no_grad():
            return self.built.search_with_log_partition(query.detach().float(), k, exclude)

    def _search_built(
        self, changes: Changes, query: Tensor, k: int, exclude: Exclusions | None
    ) -> SearchResult:
        """Return the k best of the built items that are not hidden."""
        num_built = len(changes.hidden)
        if exclude is not None and changes.num_items > num_built:
            exclude = _exclusions_below(exclude, num_built)
        if changes.num_hidden == 0 and k <= num_built:
            return self.built.search(query, k, exclude)
        ids = torch.full((len(query), k), -1, device=query.device)
        scores = torch.full((len(query), k), -torch.inf, device=query.device)
        rows, width = torch.arange(len(query), device=query.device), min(k + SURPLUS, num_built)
        while len(rows):
            row_exclude = exclude if len(rows) == len(query) else _exclusions_of(exclude, rows)
            result = self.built.search(query[rows], width, row_exclude)
            is_shown = (result.item_ids >= 0) & ~changes.hidden[result.item_ids.clamp(min=0)]
            order = is_shown.byte().argsort(dim=1, descending=True, stable=True)[:, :k]
            mask = is_shown.gather(1, order)
            columns = order.shape[1]
            ids[rows, :columns] = torch.where(mask, result.item_ids.gather(1, order), -1)
            scores[rows, :columns] = torch.where(mask, result.scores.gather(1, order), -torch.inf)
            if width == num_built:
                break
            # A row is complete with k items, or when the index has returned all that it finds.
            rows = rows[~mask.all(1) & (result.item_ids[:, -1] >= 0)]
            width = min(2 * width, num_built)
        return SearchResult(ids, scores)

    def _append(self, item_ids: Tensor, vectors: Tensor, num_items: int) -> None:
        """Append rows; the rows and built vectors that held the items before become invalid."""
        changes = self._changes.without(item_ids[item_ids < self._changes.num_items])
        if not bool(changes.is_alive.all()) and 2 * int(changes.is_alive.sum()) < changes.num_rows:
            alive = changes.is_alive
            changes = replace(
                changes,
                item_ids=changes.item_ids[alive],
                vectors=changes.vectors[alive],
                is_alive=alive[alive],
            )
            self._id_buffer, self._vector_buffer = changes.item_ids, changes.vectors
        begin, stop = changes.num_rows, changes.num_rows + len(item_ids)
        if stop > len(self._id_buffer):
            capacity = max(stop, 2 * begin)
            self._id_buffer = changes.item_ids.new_empty(capacity)
            self._vector_buffer = changes.vectors.new_empty(capacity, vectors.shape[1])
            self._id_buffer[:begin] = changes.item_ids
            self._vector_buffer[:begin] = changes.vectors
        self._id_buffer[begin:stop] = item_ids
        self._vector_buffer[begin:stop] = vectors
        self._changes = replace(
            changes,
            num_items=num_items,
            item_ids=self._id_buffer[:stop],
            vectors=self._vector_buffer[:stop],
            is_alive=torch.cat([changes.is_alive, torch.ones_like(item_ids, dtype=torch.bool)]),
        )

    def _check_vectors(self, vectors: Tensor) -> Tensor:
        dim = self.item_vectors.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise ConfigError(f"vectors must be [n, {dim}], not {list(vectors.shape)}")
        if not bool(vectors.isfinite().all()):
            raise diverged_items()
        return vectors.detach().to(self.item_vectors.device, torch.float32)


def _check_ids(item_ids: Tensor, num_items: int) -> None:
    unknown = item_ids[(item_ids < 0) | (item_ids >= num_items)]
    if len(unknown):
        raise ConfigError(f"unknown item id {int(unknown[0])}: ids are 0 to {num_items - 1}")


def _search_added(
    changes: Changes, query: Tensor, k: int, exclude: Exclusions | None
) -> SearchResult:
    """Return the k best, or all, added rows, unordered, by float64 products as float32."""
    scores = query @ changes.vectors.T
    if not bool(scores.isfinite().all()):
        raise diverged_queries()
    scores[:, ~changes.is_alive] = -torch.inf
    if exclude is not None:
        lengths = exclude.offsets.diff()
        owners = torch.repeat_interleave(torch.arange(len(lengths), device=query.device), lengths)
        first, last = int(exclude.offsets[0]), int(exclude.offsets[-1])
        rows = changes.rows_of(exclude.item_ids[first:last].to(query.device))
        scores[owners[rows >= 0], rows[rows >= 0]] = -torch.inf
    best = torch.topk(scores, min(k + SURPLUS, changes.num_rows), sorted=False)
    vectors = changes.vectors[best.indices].double()
    wide = torch.bmm(vectors, query.double().unsqueeze(-1)).squeeze(-1).float()
    is_missing = best.values.isneginf()
    return SearchResult(
        torch.where(is_missing, -1, changes.item_ids[best.indices]),
        torch.where(is_missing, -torch.inf, wide),
    )


def _exclusions_below(exclude: Exclusions, num_items: int) -> Exclusions:
    """Return only the exclusions of ids below ``num_items``."""
    is_built = exclude.item_ids < num_items
    before = torch.nn.functional.pad(is_built.cumsum(0), (1, 0))
    return Exclusions(exclude.item_ids[is_built], before[exclude.offsets])


def _exclusions_of(exclude: Exclusions | None, rows: Tensor) -> Exclusions | None:
    """Return the exclusions of some rows, renumbered from 0."""
    if exclude is None:
        return None
    lengths = exclude.offsets.diff()[rows]
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    starts = exclude.offsets[rows] - offsets[:-1]
    positions = torch.arange(int(offsets[-1]), device=rows.device)
    positions = positions + torch.repeat_interleave(starts, lengths)
    return Exclusions(exclude.item_ids[positions], offsets)
