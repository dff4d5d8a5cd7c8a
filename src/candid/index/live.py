"""Items added, updated and deleted beside a built index, while others search it.

The built index is never touched. A deleted or updated item of it is hidden: searches ask for
more than they want and drop what is hidden, again with twice as many where a row comes out
short. New and updated vectors stand in rows of their own, which are searched exactly and merged.
So every index can change, those too that cannot delete (HNSW), and what it costs grows with the
changes alone: one inner product for each added row. Build anew when they are many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.index.checks import check_search, diverged_items, diverged_queries
from candid.index.order import decode, encode
from candid.index.protocol import Exclusions, Index, SearchResult

SURPLUS = 16
"""Items asked for beyond k: of the built index where some are hidden, of the added rows always."""


@dataclass(frozen=True)
class Changes:
    """What changed since the index was built; never written into, so that a search may go on.

    Attributes:
        num_items: ids in use, deleted ones included.
        hidden: [V] bool, built items that are deleted or have another vector now.
        num_hidden: how many.
        item_ids: [n] int64, the item of each added row.
        vectors: [n, D] float32.
        is_alive: [n] bool, whether the row still holds the vector of its item.
    """

    num_items: int
    hidden: Tensor
    num_hidden: int
    item_ids: Tensor
    vectors: Tensor
    is_alive: Tensor

    @property
    def num_rows(self) -> int:
        """n, rows that every search multiplies with."""
        return len(self.item_ids)

    @cached_property
    def num_live(self) -> int:
        """Items that a search may find."""
        return len(self.hidden) - self.num_hidden + int(self.is_alive.sum())

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Ids of the rows that are alive, ascending, and their rows."""
        rows = self.is_alive.nonzero().squeeze(1)
        ids, order = self.item_ids[rows].sort()
        return ids, rows[order]

    def rows_of(self, item_ids: Tensor) -> Tensor:
        """The row that holds the vector of each item: [m] int64, -1 where none does."""
        ids, rows = self._sorted
        if len(ids) == 0:
            return torch.full_like(item_ids, -1)
        at = torch.searchsorted(ids, item_ids).clamp(max=len(ids) - 1)
        return torch.where(ids[at] == item_ids, rows[at], -1)

    def is_live(self, item_ids: Tensor) -> Tensor:
        """Whether a search may find each item: [m] bool."""
        is_built = (item_ids >= 0) & (item_ids < len(self.hidden))
        shown = ~self.hidden[item_ids.clamp(0, len(self.hidden) - 1)]
        return (is_built & shown) | (self.rows_of(item_ids) >= 0)


class LiveIndex:
    """A built index and what changed since.

    Safe to search from several threads while one or several others change it: a search sees all
    of a change or nothing.

    Args:
        built: the index over ``item_vectors``.
        item_vectors: [V, D] float32; kept as they are, not copied.
        changes: to begin with; None: none.

    Raises:
        ConfigError: the index is over another number of items.
    """

    def __init__(self, built: Index, item_vectors: Tensor, changes: Changes | None = None) -> None:
        if built.num_items != len(item_vectors):
            raise ConfigError(
                f"the index holds {built.num_items} items and there are {len(item_vectors)} vectors"
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
        # Rows beyond those of a Changes: room that no search looks at.
        self._ids_room = self._changes.item_ids
        self._vectors_room = self._changes.vectors
        self._lock = threading.Lock()

    @property
    def num_items(self) -> int:
        """Ids in use, deleted ones included."""
        return self._changes.num_items

    @property
    def num_live(self) -> int:
        """Items that a search may find."""
        return self._changes.num_live

    @property
    def changes(self) -> Changes:
        """What changed so far."""
        return self._changes

    def add(self, vectors: Tensor) -> Tensor:
        """Add items; see ``MutableIndex.add``.

        Raises:
            ConfigError: vectors of another width.
            ArtifactError: a vector is not finite.
        """
        vectors = self._checked(vectors)
        with self._lock:
            first = self._changes.num_items
            item_ids = torch.arange(first, first + len(vectors), device=vectors.device)
            self._append(item_ids, vectors, num_items=first + len(vectors))
        return item_ids

    def update(self, item_ids: Tensor, vectors: Tensor) -> None:
        """Give items other vectors; see ``MutableIndex.update``.

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
            before: called when nothing can fail any more and no search sees the change yet.

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
        vectors = self._checked(vectors)
        item_ids = item_ids.to(vectors.device, torch.int64)
        if item_ids.shape != vectors.shape[:1] or len(item_ids.unique()) != len(item_ids):
            raise ConfigError(
                f"an update needs one vector for each of its items, and each item once: got "
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
        """Find some items no more; see ``MutableIndex.delete``.

        Raises:
            ConfigError: an id is not in use.
        """
        item_ids = item_ids.to(self.item_vectors.device, torch.int64)
        with self._lock:
            _check_ids(item_ids, self._changes.num_items)
            self._changes = self._without(item_ids)

    def is_live(self, item_ids: Tensor) -> Tensor:
        """Whether a search may find each item: [m] bool."""
        return self._changes.is_live(item_ids.to(self.item_vectors.device))

    def vectors_of(self, item_ids: Tensor) -> Tensor:
        """The vectors of items that are live: [m, D] float32.

        Raises:
            ConfigError: one is deleted, or no item.
        """
        changes = self._changes
        item_ids = item_ids.to(self.item_vectors.device)
        is_live = changes.is_live(item_ids)
        if not bool(is_live.all()):
            raise ConfigError(f"item id {int(item_ids[~is_live][0])} is not in the index")
        rows = changes.rows_of(item_ids)
        is_added = rows >= 0
        found = self.item_vectors.new_empty(len(item_ids), self.item_vectors.shape[1])
        found[is_added] = changes.vectors[rows[is_added]]
        found[~is_added] = self.item_vectors[item_ids[~is_added]]
        return found

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k live items of largest inner product.

        Args:
            query: [B, D] float32.
            k: results a query, 1 ≤ k ≤ ``num_items``.
            exclude: items to leave out, packed, in any order and with repeats, or None.

        Returns:
            [B, K] ids (-1 where fewer than k items are live and allowed) and scores, best first.

        Raises:
            ConfigError: k outside its bounds, or a query of another width than the items.
            ArtifactError: a query is not finite.
        """
        changes = self._changes
        check_search(query, k, changes.num_items, self.item_vectors.shape[1])
        with torch.no_grad():
            built = self._search_built(changes, query.detach().float(), k, exclude)
            if changes.num_rows == 0:
                return built
            added = _search_added(changes, query.detach().float(), k, exclude)
            keys = [encode(hits.scores, hits.item_ids) for hits in (built, added)]
            best = torch.topk(torch.cat(keys, dim=1), k).values
            return SearchResult(*decode(best))

    def _search_built(
        self, changes: Changes, query: Tensor, k: int, exclude: Exclusions | None
    ) -> SearchResult:
        """The k best of the built items that are not hidden."""
        num_built = len(changes.hidden)
        if exclude is not None and changes.num_items > num_built:
            exclude = _below(exclude, num_built)
        if changes.num_hidden == 0 and k <= num_built:
            return self.built.search(query, k, exclude)
        ids = torch.full((len(query), k), -1, device=query.device)
        scores = torch.full((len(query), k), -torch.inf, device=query.device)
        rows, width = torch.arange(len(query), device=query.device), min(k + SURPLUS, num_built)
        while len(rows):
            asked = exclude if len(rows) == len(query) else _of_rows(exclude, rows)
            found = self.built.search(query[rows], width, asked)
            is_shown = (found.item_ids >= 0) & ~changes.hidden[found.item_ids.clamp(min=0)]
            order = is_shown.byte().argsort(dim=1, descending=True, stable=True)[:, :k]
            kept = is_shown.gather(1, order)
            columns = order.shape[1]
            ids[rows, :columns] = torch.where(kept, found.item_ids.gather(1, order), -1)
            scores[rows, :columns] = torch.where(kept, found.scores.gather(1, order), -torch.inf)
            if width == num_built:
                break
            # A row is done with k items, or once it was given all that the index finds for it.
            rows = rows[~kept.all(1) & (found.item_ids[:, -1] >= 0)]
            width = min(2 * width, num_built)
        return SearchResult(ids, scores)

    def _append(self, item_ids: Tensor, vectors: Tensor, num_items: int) -> None:
        """Put rows behind those there are, in place of what held the items before."""
        changes = self._without(item_ids[item_ids < self._changes.num_items])
        if not bool(changes.is_alive.all()) and 2 * int(changes.is_alive.sum()) < changes.num_rows:
            kept = changes.is_alive
            changes = replace(
                changes,
                item_ids=changes.item_ids[kept],
                vectors=changes.vectors[kept],
                is_alive=kept[kept],
            )
            self._ids_room, self._vectors_room = changes.item_ids, changes.vectors
        begin, stop = changes.num_rows, changes.num_rows + len(item_ids)
        if stop > len(self._ids_room):
            room = max(stop, 2 * begin)
            self._ids_room = changes.item_ids.new_empty(room)
            self._vectors_room = changes.vectors.new_empty(room, vectors.shape[1])
            self._ids_room[:begin] = changes.item_ids
            self._vectors_room[:begin] = changes.vectors
        self._ids_room[begin:stop] = item_ids
        self._vectors_room[begin:stop] = vectors
        self._changes = replace(
            changes,
            num_items=num_items,
            item_ids=self._ids_room[:stop],
            vectors=self._vectors_room[:stop],
            is_alive=torch.cat([changes.is_alive, torch.ones_like(item_ids, dtype=torch.bool)]),
        )

    def _without(self, item_ids: Tensor) -> Changes:
        """The changes and these items deleted."""
        changes = self._changes
        hidden, is_alive = changes.hidden, changes.is_alive
        built = item_ids[item_ids < len(hidden)]
        if len(built):
            hidden = hidden.index_fill(0, built, True)
        rows = changes.rows_of(item_ids)
        if bool((rows >= 0).any()):
            is_alive = is_alive.index_fill(0, rows[rows >= 0], False)
        return replace(changes, hidden=hidden, num_hidden=int(hidden.sum()), is_alive=is_alive)

    def _checked(self, vectors: Tensor) -> Tensor:
        dim = self.item_vectors.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise ConfigError(f"vectors must be [n, {dim}], not {list(vectors.shape)}")
        if not bool(vectors.isfinite().all()):
            raise diverged_items()
        return vectors.detach().to(self.item_vectors.device, torch.float32)


def _check_ids(item_ids: Tensor, num_items: int) -> None:
    unknown = item_ids[(item_ids < 0) | (item_ids >= num_items)]
    if len(unknown):
        raise ConfigError(f"item id {int(unknown[0])} is not in use: ids are 0 to {num_items - 1}")


def _search_added(
    changes: Changes, query: Tensor, k: int, exclude: Exclusions | None
) -> SearchResult:
    """The k best, or all, of the added rows, unordered, by float64 products rounded to float32."""
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
    kept = torch.topk(scores, min(k + SURPLUS, changes.num_rows), sorted=False)
    vectors = changes.vectors[kept.indices].double()
    wide = torch.bmm(vectors, query.double().unsqueeze(-1)).squeeze(-1).float()
    is_none = kept.values.isneginf()
    return SearchResult(
        torch.where(is_none, -1, changes.item_ids[kept.indices]),
        torch.where(is_none, -torch.inf, wide),
    )


def _below(exclude: Exclusions, num_items: int) -> Exclusions:
    """Only the exclusions of ids below ``num_items``."""
    is_built = exclude.item_ids < num_items
    before = torch.nn.functional.pad(is_built.cumsum(0), (1, 0))
    return Exclusions(exclude.item_ids[is_built], before[exclude.offsets])


def _of_rows(exclude: Exclusions | None, rows: Tensor) -> Exclusions | None:
    """The exclusions of some rows, renumbered from 0."""
    if exclude is None:
        return None
    lengths = exclude.offsets.diff()[rows]
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    starts = exclude.offsets[rows] - offsets[:-1]
    places = torch.arange(int(offsets[-1]), device=rows.device)
    return Exclusions(exclude.item_ids[places + torch.repeat_interleave(starts, lengths)], offsets)
