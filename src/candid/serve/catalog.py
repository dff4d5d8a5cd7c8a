"""Searches of a served catalog: plain, among allowed items, near an item; and the partition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.index import Exclusions, LiveIndex

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ranked = tuple[Ints, Floats]
"""Item ids and scores of one query, best first."""

FEW = 50_000
"""Allowed items that are all scored; of more the index is asked for some beyond k."""
BLOCK = 16_384
"""Items scored at once."""


class Catalog:
    """What one index can be asked.

    Args:
        index: over the item vectors, with their changes.
    """

    def __init__(self, index: LiveIndex) -> None:
        self.index = index
        self._inverse_norms: Tensor | None = None

    @property
    def dim(self) -> int:
        """D."""
        return self.index.item_vectors.shape[1]

    def is_live(self) -> Bools:
        """Whether each item may be found: [n] bool."""
        changes = self.index.changes
        live = torch.zeros(changes.num_items, dtype=torch.bool)
        live[: len(changes.hidden)] = ~changes.hidden
        live[changes.item_ids[changes.is_alive]] = True
        return live.numpy()

    def live_vectors(self, item_ids: Ints) -> tuple[Ints, Tensor]:
        """Those of some items that are live, in their order, and their vectors [m, D] float32.

        Others may delete items meanwhile, so that what was live a moment ago has no vector now.
        """
        ids = torch.from_numpy(item_ids)
        while True:
            ids = ids[self.index.is_live(ids)]
            try:
                return ids.numpy(), self.index.vectors_of(ids)
            except ConfigError:
                continue

    def nearest(self, query: Tensor, k: int, excluded: list[Ints]) -> list[Ranked]:
        """The best items of B queries [B, D], without B lists of excluded ones."""
        k = min(k, self.index.num_items)
        hits = self.index.search(query, k, _packed(excluded))
        ids, scores = hits.item_ids.numpy(), hits.scores.numpy()
        counts = (ids >= 0).sum(1)
        return [(i[:n], s[:n]) for i, s, n in zip(ids, scores, counts.tolist(), strict=True)]

    def nearest_allowed(self, query: Tensor, k: int, allowed: Bools, excluded: Ints) -> Ranked:
        """The best items of one query [D] among those allowed: [n] bool.

        Few allowed items are all scored. Of many the index is asked for more than k, and all are
        scored after all where that leaves fewer than k.
        """
        # Items come while others ask: the filter and the index may each know one that the other
        # does not know yet.
        live = self.is_live()
        allowed = allowed[: len(live)] & live[: len(allowed)]
        allowed[excluded[excluded < len(allowed)]] = False
        count = int(allowed.sum())
        if count > FEW:
            share = count / self.index.num_items
            asked = min(self.index.num_items, int(2 * k / share) + 100)
            [(ids, scores)] = self.nearest(query[None], asked, [np.zeros(0, np.int64)])
            # An item may have come after the filter was evaluated.
            kept = ids < len(allowed)
            kept[kept] = allowed[ids[kept]]
            if int(kept.sum()) >= k:
                return ids[kept][:k], scores[kept][:k]
        return self.best_of(query, k, np.flatnonzero(allowed))

    def best_of(self, query: Tensor, k: int, item_ids: Ints) -> Ranked:
        """The best of given items for one query [D]; every live one is scored."""
        found, scores = [item_ids[:0]], [np.zeros(0, dtype=np.float32)]
        for begin in range(0, len(item_ids), BLOCK):
            ids, vectors = self.live_vectors(item_ids[begin : begin + BLOCK])
            found.append(ids)
            scores.append((vectors @ query).numpy())
        return _top(np.concatenate(found), np.concatenate(scores), k)

    def similar(self, item_id: int, k: int, allowed: Bools | None, excluded: Ints) -> Ranked:
        """The live items of largest cosine with an item, itself left out; every one is scored.

        Without the item there are none.
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
        for begin, block in _blocks(self.index.item_vectors):
            scores[begin : begin + len(block)] = block @ vector
        scores[: len(self._inverse_norms)] *= self._inverse_norms
        scores[: len(changes.hidden)][changes.hidden] = -torch.inf
        rows = changes.is_alive
        added = changes.vectors[rows]
        scores[changes.item_ids[rows]] = (added @ vector) * _inverse_norms(added)
        scores[item_id] = -torch.inf
        scores[torch.from_numpy(excluded[excluded < len(scores)])] = -torch.inf
        if allowed is not None:
            allowed = allowed[: len(scores)]
            scores[: len(allowed)][~torch.from_numpy(allowed)] = -torch.inf
            scores[len(allowed) :] = -torch.inf
        ids, best = _top(np.arange(len(scores)), scores.numpy(), k)
        found = np.isfinite(best)
        return ids[found], best[found]

    def log_partition(self, query: Tensor) -> Tensor:
        """Sum exp(score) of B queries [B, D] over all live items, as a log: [B] float64."""
        changes = self.index.changes
        total = torch.full((len(query),), -torch.inf, dtype=torch.float64)
        for begin, block in _blocks(self.index.item_vectors):
            scores = query @ block.T
            if changes.num_hidden:
                scores[:, changes.hidden[begin : begin + len(block)]] = -torch.inf
            total = torch.logaddexp(total, _log_sum(scores))
        if changes.num_rows:
            scores = query @ changes.vectors.T
            scores[:, ~changes.is_alive] = -torch.inf
            total = torch.logaddexp(total, _log_sum(scores))
        return total


def _log_sum(scores: Tensor) -> Tensor:
    """Sum exp of rows [B, n] in float64, as a log; -inf where all are."""
    largest = scores.amax(1, keepdim=True)
    shift = torch.where(largest.isneginf(), 0.0, largest)
    return shift.squeeze(1).double() + (scores - shift).exp_().sum(1, dtype=torch.float64).log()


def _top(item_ids: Ints, scores: Floats, k: int) -> Ranked:
    """The k largest; ties go to the lower id."""
    if len(scores) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = scores >= threshold
        item_ids, scores = item_ids[kept], scores[kept]
    order = np.lexsort((item_ids, -scores))[:k]
    return item_ids[order], scores[order]


def _inverse_norms(vectors: Tensor) -> Tensor:
    norms = torch.empty(len(vectors))
    for begin, block in _blocks(vectors):
        norms[begin : begin + len(block)] = block.norm(dim=1)
    return torch.where(norms > 0, 1 / norms, 0.0)


def _blocks(vectors: Tensor) -> Iterator[tuple[int, Tensor]]:
    for begin in range(0, len(vectors), BLOCK):
        yield begin, vectors[begin : begin + BLOCK]


def _packed(excluded: list[Ints]) -> Exclusions | None:
    lengths = [len(ids) for ids in excluded]
    if not any(lengths):
        return None
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Exclusions(torch.from_numpy(np.concatenate(excluded)), torch.from_numpy(offsets))
