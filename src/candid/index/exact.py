"""Exact search: every inner product, block by block, and a result that blocking cannot change.

Matrix products of different shapes add up in different orders, so plain float32 scores move
by an ulp with the block size and ties fall anywhere. Here a score is *defined* as the float64
inner product rounded to float32, and order as (score descending, id ascending). The scan in
the working precision only proposes a few more items than asked for; these are scored again
by the definition, and a row is accepted where the error bound of the scan proves that no
other item can belong (Cauchy-Schwarz: |error| ≤ γ_D ‖q‖ max‖v‖). The few other rows, such as
those with more ties than the surplus holds, are searched again in float64.

Large searches on a CPU select in machine code (``select_pass``), all others in torch (``scan``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
from candid.index.order import decode, encode
from candid.index.protocol import Exclusions, IndexConfig, SearchResult
from candid.index.scan import GROUP, RunningTopK
from candid.index.select_pass import NativeSelection, NativeTopK, native_for

SURPLUS = 16
"""Items that the scan keeps beyond k, so that near ties at the cut rarely need a second look."""


class ExactIndex:
    """All inner products, without ever holding B×V of them.

    Memory beside the vectors is ``block_rows × block_items`` scores and O(block_rows × k).

    Args:
        item_vectors: [V, D] float32; kept as it is, on its device, not copied.
        block_items: items scored at once.
        block_rows: queries scored at once. The defaults let a block stay in a CPU's cache.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: a block size below 1, or vectors that are not a matrix with V, D ≥ 1.
        ArtifactError: a vector is not finite.
    """

    class Config(IndexConfig):
        """Settings of the exact index; none of them changes a result."""

        block_items: int = Field(4096, ge=1, description="items scored at once")
        block_rows: int = Field(256, ge=1, description="queries scored at once")

        def build(self, item_vectors: Tensor) -> ExactIndex:
            """Make the index over ``item_vectors`` [V, D]."""
            return ExactIndex(item_vectors, self.block_items, self.block_rows)

    def __init__(
        self, item_vectors: Tensor, block_items: int = 4096, block_rows: int = 256
    ) -> None:
        check_item_vectors(item_vectors)
        if block_items < 1 or block_rows < 1:
            raise ConfigError("block_items and block_rows must be at least 1")
        vectors = item_vectors.detach().float()
        self.num_items = len(vectors)
        self._vectors = vectors
        self._block_items = min(block_items, self.num_items)
        self._block_rows = block_rows
        norm = torch.zeros((), dtype=torch.float64, device=vectors.device)
        for begin in range(0, self.num_items, self._block_items):
            block = vectors[begin : begin + self._block_items].double()
            norm = torch.maximum(norm, block.square().sum(-1).max().sqrt())
        if not bool(norm.isfinite()):
            raise diverged_items()
        self._max_norm = norm

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k items of largest inner product; ties go to the lower id.

        Args:
            query: [B, D] float32.
            k: results a query, 1 ≤ k ≤ V.
            exclude: items to leave out, packed, in any order and with repeats, or None.

        Returns:
            [B, K] ids (-1 where fewer than k items are allowed) and scores, best first. They
            do not depend on the block sizes or on what else is in the batch.

        Raises:
            ConfigError: k outside 1..V, or a query of another width than the items.
            ArtifactError: a query or a score is not finite.
        """
        check_search(query, k, self.num_items, self._vectors.shape[1])
        with torch.inference_mode(), torch.autocast(query.device.type, enabled=False):
            query = query.detach().float()
            norms = query.double().norm(dim=1)
            # Also False for NaN. A product of norms within float32 rules out that scores overflow.
            if not bool((norms * self._max_norm <= torch.finfo(torch.float32).max).all()):
                raise diverged_queries()
            keys = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
            native = native_for(query, self._vectors, self._wanted(k), exclude)
            if native is None:
                for begin in range(0, len(query), self._block_rows):
                    rows = slice(begin, begin + self._block_rows)
                    keys[rows] = self._search_rows(query[rows], k, _rows_of(exclude, rows))
            else:
                self._search_native(native, query.contiguous(), norms, exclude, keys)
            ids, scores = decode(keys)
        return SearchResult(ids.clone(), scores.clone())

    def _wanted(self, k: int) -> int:
        return min(k + SURPLUS, self.num_items)

    def _search_native(
        self,
        native: NativeSelection,
        query: Tensor,
        norms: Tensor,
        exclude: Exclusions | None,
        keys: Tensor,
    ) -> None:
        """Search in machine code; fills ``keys`` [B, K], best first."""
        errors = self._scan_error() * norms * self._max_norm
        num_rows = min(self._block_rows, len(query))
        best = NativeTopK(native, num_rows, self._wanted(keys.shape[1]))
        # One for all: fresh memory costs as much as selecting from it.
        buffer = query.new_empty(num_rows * self._block_items)
        for begin in range(0, len(query), self._block_rows):
            rows = slice(begin, begin + self._block_rows)
            asked = query[rows]
            hidden = None
            if exclude is not None:
                hidden = Exclusions(exclude.item_ids, exclude.offsets[begin : rows.stop + 1])
            for first, stop in self._blocks():
                tile = buffer[: len(asked) * (stop - first)].view(len(asked), stop - first)
                torch.mm(asked, self._vectors[first:stop].T, out=tile)
                best.add(tile, first, hidden)
            proven = best.rank(asked, self._vectors, errors[rows], keys[rows])
            unproven = (~proven).nonzero().squeeze(-1)
            if len(unproven):
                pairs = _rows_of(exclude, rows)
                again = None if pairs is None else pairs.subset(unproven, len(asked))
                found = self._search_wide(asked[unproven].double(), keys.shape[1], again)
                keys[rows].index_copy_(0, unproven, found)

    def _search_rows(self, query: Tensor, k: int, exclude: _Pairs | None) -> Tensor:
        """Search at most ``block_rows`` queries; [b, K] keys, best first."""
        kept_ids, kept_scores = self._scan(query, self._wanted(k), exclude)
        wide = query.double()
        keys = torch.topk(encode(self._exact_scores(wide, kept_ids), kept_ids), k).values
        # Whatever the scan left out scored at most its worst kept item.
        worst = kept_scores.amin(-1).double()
        bound = worst + self._scan_error() * wide.norm(dim=-1) * self._max_norm
        complete = kept_ids.shape[1] == self.num_items
        unproven = (~((decode(keys[:, -1])[1] > bound) | worst.isneginf())).nonzero().squeeze(-1)
        if complete or len(unproven) == 0:
            return keys
        again = None if exclude is None else exclude.subset(unproven, len(query))
        return keys.index_copy(0, unproven, self._search_wide(wide[unproven], k, again))

    def _exact_scores(self, wide: Tensor, item_ids: Tensor) -> Tensor:
        """Scores of given items by the definition: [b, K] float32, -inf where the id is -1."""
        scores = torch.empty(item_ids.shape, device=wide.device)
        # The gathered vectors take no more room than a tile of scores.
        elements = item_ids.shape[1] * wide.shape[1]
        step = max(1, self._block_rows * self._block_items // elements)
        for begin in range(0, len(wide), step):
            ids = item_ids[begin : begin + step]
            vectors = self._vectors.index_select(0, ids.clamp(min=0).flatten()).double()
            query = wide[begin : begin + step].unsqueeze(-1)
            scores[begin : begin + step] = torch.bmm(vectors.view(*ids.shape, -1), query)[..., 0]
        return torch.where(item_ids < 0, -torch.inf, scores)

    def _scan(self, query: Tensor, k: int, exclude: _Pairs | None) -> tuple[Tensor, Tensor]:
        """The k best by working precision, unordered: ids (-1 where none) and scores [b, k]."""
        best = RunningTopK(len(query), k, query.device)
        buffer = query.new_empty(len(query) * _padded(self._block_items))
        for begin, stop in self._blocks():
            width = _padded(stop - begin)
            tile = buffer[: len(query) * width].view(len(query), width)
            tile[:, stop - begin :] = -torch.inf
            torch.mm(query, self._vectors[begin:stop].T, out=tile[:, : stop - begin])
            if exclude is not None:
                tile.view(-1).index_fill_(0, exclude.within(begin, stop, width), -torch.inf)
            best.add(tile, begin)
        return best.result()

    def _search_wide(self, wide: Tensor, k: int, exclude: _Pairs | None) -> Tensor:
        """Search in float64 throughout: the definition itself, several times slower."""
        keys = encode(
            wide.new_full((len(wide), k), -torch.inf, dtype=torch.float32),
            torch.full((len(wide), k), -1, device=wide.device),
        )
        for begin, stop in self._blocks():
            scores = (wide @ self._vectors[begin:stop].double().T).float()
            if exclude is not None:
                hidden = exclude.within(begin, stop, stop - begin)
                scores.view(-1).index_fill_(0, hidden, -torch.inf)
            found = encode(scores, torch.arange(begin, stop, device=wide.device))
            found = torch.topk(found, min(k, stop - begin)).values
            keys = torch.topk(torch.cat([keys, found], dim=1), k).values
        return keys

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for begin in range(0, self.num_items, self._block_items):
            yield begin, min(begin + self._block_items, self.num_items)

    def _scan_error(self) -> float:
        """Bound of |scan - exact| / (‖q‖ ‖v‖), twice over for the rounding of the exact score."""
        roundoff = {"highest": 2.0**-24, "high": 2.0**-10, "medium": 2.0**-7}
        try:
            inputs = roundoff[torch.get_float32_matmul_precision()]
        except RuntimeError:
            # torch cannot tell where precision was set a backend at a time: expect the worst.
            inputs = roundoff["medium"]
        return 2 * (2 * inputs + (self._vectors.shape[1] + 2) * 2.0**-24)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Excluded (row, item) pairs of one block of rows, sorted by item."""

    rows: Tensor
    item_ids: Tensor

    def within(self, begin: int, stop: int, width: int) -> Tensor:
        """Flat positions in a [b, width] block of the scores of items begin .. stop - 1."""
        bounds = torch.tensor([begin, stop], device=self.item_ids.device)
        first, last = torch.searchsorted(self.item_ids, bounds).tolist()
        return self.rows[first:last] * width + self.item_ids[first:last] - begin

    def subset(self, rows: Tensor, num_rows: int) -> _Pairs:
        """Keep ``rows`` (ascending), renumbered from 0."""
        number = torch.full((num_rows,), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        kept = number[self.rows] >= 0
        return _Pairs(number[self.rows[kept]], self.item_ids[kept])


def _rows_of(exclude: Exclusions | None, rows: slice) -> _Pairs | None:
    if exclude is None:
        return None
    offsets = exclude.offsets[rows.start : rows.stop + 1]
    lengths = offsets.diff()
    numbers = torch.arange(len(lengths), device=offsets.device)
    owners = torch.repeat_interleave(numbers, lengths)
    item_ids, order = torch.sort(exclude.item_ids[int(offsets[0]) : int(offsets[-1])])
    return _Pairs(owners[order], item_ids)


def _padded(width: int) -> int:
    return -(-width // GROUP) * GROUP
