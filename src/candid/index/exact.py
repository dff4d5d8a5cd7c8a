"""Exact search: every inner product, block by block, with results independent of the blocks.

Matrix products of different shapes add up in different orders, so float32 scores differ by an ulp
between block sizes and the order of ties is arbitrary. Here a score is *defined* as the float64
inner product rounded to float32, and the order as (score descending, id ascending). A scan in
the working precision selects a few more items than requested; these are scored again by the
definition, and a row is accepted if the error bound of the scan proves that no other item can
belong to its result (Cauchy-Schwarz: |error| ≤ γ_D ‖q‖ max‖v‖). The few other rows, such as those
with more ties than the surplus holds, are searched again in float64.

Large searches on a CPU select with a native kernel (``select_pass``), all others with torch
(``scan``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

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
from candid.index.log_sum_exp import RunningLogSumExp
from candid.index.order import decode, encode
from candid.index.protocol import Exclusions, Index, IndexConfig, SearchResult
from candid.index.scan import GROUP, RunningTopK
from candid.index.select_pass import (
    SCANNED_ROWS,
    NativeSelection,
    NativeTopK,
    native_selection_for,
)

SURPLUS = 16
"""Items that the scan keeps beyond k, so that near ties at the cut rarely need a second search."""
BLOCK_ITEMS: Final = 4096
BLOCK_ROWS: Final = 256
"""Default block sizes: a block of scores stays in the cache of a CPU."""


class ExactIndex(Index):
    """All inner products, without holding B×V of them in memory.

    Memory in addition to the vectors is ``block_rows × block_items`` scores and O(block_rows × k).

    Args:
        item_vectors: [V, D] float32; stays on its device, not copied.
        block_items: items scored at a time.
        block_rows: queries scored at a time.

    Attributes:
        num_items: V.

    Raises:
        ConfigError: a block size below 1, or vectors that are not a matrix with V, D ≥ 1.
        ArtifactError: a vector is not finite.

    Example:
        >>> index = ExactIndex(torch.eye(3))
        >>> index.search(torch.tensor([[1.0, 3.0, 2.0]]), k=2).item_ids
        tensor([[1, 2]])
    """

    scores_all_items = True

    class Config(IndexConfig):
        """Settings of the exact index; they do not change results."""

        block_items: int = Field(BLOCK_ITEMS, ge=1, description="items scored at a time")
        block_rows: int = Field(BLOCK_ROWS, ge=1, description="queries scored at a time")

        def build(self, item_vectors: Tensor) -> ExactIndex:
            """Build the index over ``item_vectors`` [V, D]."""
            return ExactIndex(item_vectors, **self.model_dump())

    def __init__(
        self,
        item_vectors: Tensor,
        *,
        block_items: int = BLOCK_ITEMS,
        block_rows: int = BLOCK_ROWS,
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
            k: results per query, 1 ≤ k ≤ V.
            exclude: items to leave out, packed, in any order and with repeats, or None.

        Returns:
            [B, K] ids (-1 where fewer than k items are allowed) and scores, best first. They
            do not depend on the block sizes or on the other queries of the batch.

        Raises:
            ConfigError: k is outside 1..V, or the queries are not as wide as the items.
            ArtifactError: a query or a score is not finite.
        """
        return self._search(query, k, exclude, None)

    def search_with_log_partition(
        self, query: Tensor, k: int, exclude: Exclusions | None = None
    ) -> tuple[SearchResult, Tensor]:
        """Search, and compute log Σ_d exp(q · v_d) over all V items from the same scores.

        Args:
            query: [B, D] float32.
            k: results per query, 1 ≤ k ≤ V.
            exclude: items that the results leave out; they count in the sum.

        Returns:
            the result of ``search``, and [B] float64 from scores in the working precision.

        Raises:
            ConfigError: as ``search``.
            ArtifactError: as ``search``.
        """
        log_z = torch.empty(len(query), dtype=torch.float64, device=query.device)
        return self._search(query, k, exclude, log_z), log_z

    def equal_scores(
        self, query: Tensor, scores: Tensor, exclude: Exclusions | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Find all items that have a given score.

        A product in the working precision finds the items that can have it; these are scored by
        the definition.

        Args:
            query: [B, D] float32; memory is B × ``block_items`` scores.
            scores: [B] float32, such as a score that ``search`` returned for each query.
            exclude: items that never count, or None.

        Yields:
            Block by block: ids [m] int64, ascending, and [B, m] bool, whether the item has the
            score of the query and is not excluded. Items that have none of the scores are left
            out.
        """
        with torch.inference_mode(), torch.autocast(query.device.type, enabled=False):
            query, scores = query.detach().float(), scores[:, None]
            wide, pairs = query.double(), _rows_of(exclude, slice(0, len(query)))
            errors = self._scan_error() * wide.norm(dim=1, keepdim=True) * self._max_norm
            # Rounding the bound to float32 must not lower it.
            errors = errors.float() * (1 + 2.0**-20)
            for begin, stop in self._blocks():
                is_near = (query @ self._vectors[begin:stop].T).sub_(scores).abs_() <= errors
                if pairs is not None:
                    excluded = pairs.within(begin, stop, stop - begin)
                    is_near.view(-1).index_fill_(0, excluded, False)
                columns = is_near.any(0).nonzero().squeeze(-1)
                if len(columns):
                    vectors = self._vectors[columns + begin].double()
                    is_equal = (wide @ vectors.T).float() == scores
                    yield columns + begin, is_equal & is_near[:, columns]

    def settings(self) -> Mapping[str, Any]:
        """Return the block sizes."""
        return {"block_items": self._block_items, "block_rows": self._block_rows}

    def _search(
        self, query: Tensor, k: int, exclude: Exclusions | None, log_z: Tensor | None
    ) -> SearchResult:
        """Search; fills ``log_z`` [B] with the log partition of each row, if it is given."""
        check_search(query, k, self.num_items, self._vectors.shape[1])
        with torch.inference_mode(), torch.autocast(query.device.type, enabled=False):
            query = query.detach().float()
            norms = query.double().norm(dim=1)
            # False for NaN too. If the product of norms fits float32, no score overflows.
            if not bool((norms * self._max_norm <= torch.finfo(torch.float32).max).all()):
                raise diverged_queries()
            keys = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
            native = native_selection_for(query, self._vectors, self._scan_k(k), exclude)
            if native is None:
                for begin in range(0, len(query), self._block_rows):
                    rows = slice(begin, begin + self._block_rows)
                    sums = self._log_sums(query[rows], log_z)
                    keys[rows] = self._search_rows(query[rows], k, _rows_of(exclude, rows), sums)
                    if log_z is not None and sums is not None:
                        log_z[rows] = sums.result()
            else:
                self._search_native(native, query.contiguous(), norms, exclude, keys, log_z)
            ids, scores = decode(keys)
        return SearchResult(ids.clone(), scores.clone())

    def _log_sums(self, query: Tensor, log_z: Tensor | None) -> RunningLogSumExp | None:
        if log_z is None:
            return None
        return RunningLogSumExp(len(query), num_columns=self.num_items, device=query.device)

    def _scan_k(self, k: int) -> int:
        return min(k + SURPLUS, self.num_items)

    def _search_native(
        self,
        native: NativeSelection,
        query: Tensor,
        norms: Tensor,
        exclude: Exclusions | None,
        keys: Tensor,
        log_z: Tensor | None,
    ) -> None:
        """Search with the native kernel; fills ``keys`` [B, K], best first, and ``log_z``."""
        errors = self._scan_error() * norms * self._max_norm
        num_rows = min(self._block_rows, len(query))
        is_scanned = len(query) <= SCANNED_ROWS and log_z is None
        parts = torch.get_num_threads() if is_scanned else 1
        best = NativeTopK(native, num_rows, self._scan_k(keys.shape[1]), parts)
        # One buffer for all tiles: fresh memory costs as much as selecting from it.
        buffer = query.new_empty(0 if is_scanned else num_rows * self._block_items)
        for begin in range(0, len(query), self._block_rows):
            rows = slice(begin, begin + self._block_rows)
            chunk = query[rows]
            chunk_exclude = None
            if exclude is not None:
                offsets = exclude.offsets[begin : rows.stop + 1]
                chunk_exclude = Exclusions(exclude.item_ids, offsets)
            sums = self._log_sums(chunk, log_z)
            if is_scanned:
                best.scan(chunk, self._vectors, chunk_exclude)
            for first, stop in () if is_scanned else self._blocks():
                tile = buffer[: len(chunk) * (stop - first)].view(len(chunk), stop - first)
                torch.mm(chunk, self._vectors[first:stop].T, out=tile)
                if sums is not None:  # before the scores of excluded items become -inf
                    sums.add(tile)
                best.add(tile, first, chunk_exclude)
            if log_z is not None and sums is not None:
                log_z[rows] = sums.result()
            proven = best.rank(chunk, self._vectors, errors[rows], keys[rows])
            unproven = (~proven).nonzero().squeeze(-1)
            if len(unproven):
                pairs = _rows_of(exclude, rows)
                row_exclude = None if pairs is None else pairs.subset(unproven, len(chunk))
                wide = chunk[unproven].double()
                keys[rows].index_copy_(
                    0, unproven, self._search_wide(wide, keys.shape[1], row_exclude)
                )

    def _search_rows(
        self, query: Tensor, k: int, exclude: _Pairs | None, sums: RunningLogSumExp | None
    ) -> Tensor:
        """Search at most ``block_rows`` queries; [b, K] keys, best first.

        All scores are added to ``sums``, if it is given.
        """
        scan_ids, scan_scores = self._scan(query, self._scan_k(k), exclude, sums)
        wide = query.double()
        keys = torch.topk(encode(self._exact_scores(wide, scan_ids), scan_ids), k).values
        # The score of an item outside the scan's result is at most its lowest one.
        worst = scan_scores.amin(-1).double()
        bound = worst + self._scan_error() * wide.norm(dim=-1) * self._max_norm
        complete = scan_ids.shape[1] == self.num_items
        unproven = (~((decode(keys[:, -1])[1] > bound) | worst.isneginf())).nonzero().squeeze(-1)
        if complete or len(unproven) == 0:
            return keys
        row_exclude = None if exclude is None else exclude.subset(unproven, len(query))
        return keys.index_copy(0, unproven, self._search_wide(wide[unproven], k, row_exclude))

    def _exact_scores(self, wide: Tensor, item_ids: Tensor) -> Tensor:
        """Return the scores of items by the definition: [b, K] float32, -inf for id -1."""
        scores = torch.empty(item_ids.shape, device=wide.device)
        # The gathered vectors take at most the memory of a tile of scores.
        elements = item_ids.shape[1] * wide.shape[1]
        step = max(1, self._block_rows * self._block_items // elements)
        for begin in range(0, len(wide), step):
            ids = item_ids[begin : begin + step]
            vectors = self._vectors.index_select(0, ids.clamp(min=0).flatten()).double()
            query = wide[begin : begin + step].unsqueeze(-1)
            scores[begin : begin + step] = torch.bmm(vectors.view(*ids.shape, -1), query)[..., 0]
        return torch.where(item_ids < 0, -torch.inf, scores)

    def _scan(
        self, query: Tensor, k: int, exclude: _Pairs | None, sums: RunningLogSumExp | None
    ) -> tuple[Tensor, Tensor]:
        """Return the k best by working precision, unordered: ids (-1: none) and scores [b, k]."""
        best = RunningTopK(len(query), k, query.device)
        buffer = query.new_empty(len(query) * _padded(self._block_items))
        for begin, stop in self._blocks():
            width = _padded(stop - begin)
            tile = buffer[: len(query) * width].view(len(query), width)
            tile[:, stop - begin :] = -torch.inf
            torch.mm(query, self._vectors[begin:stop].T, out=tile[:, : stop - begin])
            if sums is not None:  # before the scores of excluded items become -inf
                sums.add(tile)
            if exclude is not None:
                tile.view(-1).index_fill_(0, exclude.within(begin, stop, width), -torch.inf)
            best.add(tile, begin)
        return best.result()

    def _search_wide(self, wide: Tensor, k: int, exclude: _Pairs | None) -> Tensor:
        """Search in float64: the definition itself, several times slower."""
        keys = encode(
            wide.new_full((len(wide), k), -torch.inf, dtype=torch.float32),
            torch.full((len(wide), k), -1, device=wide.device),
        )
        for begin, stop in self._blocks():
            scores = (wide @ self._vectors[begin:stop].double().T).float()
            if exclude is not None:
                excluded = exclude.within(begin, stop, stop - begin)
                scores.view(-1).index_fill_(0, excluded, -torch.inf)
            block_keys = encode(scores, torch.arange(begin, stop, device=wide.device))
            block_keys = torch.topk(block_keys, min(k, stop - begin)).values
            keys = torch.topk(torch.cat([keys, block_keys], dim=1), k).values
        return keys

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for begin in range(0, self.num_items, self._block_items):
            yield begin, min(begin + self._block_items, self.num_items)

    def _scan_error(self) -> float:
        """Return a bound of |scan - exact| / (‖q‖ ‖v‖), doubled for the rounding of the score."""
        roundoff = {"highest": 2.0**-24, "high": 2.0**-10, "medium": 2.0**-7}
        try:
            inputs = roundoff[torch.get_float32_matmul_precision()]
        except RuntimeError:
            # The precision was set for each backend and torch cannot report it: assume the worst.
            inputs = roundoff["medium"]
        return 2 * (2 * inputs + (self._vectors.shape[1] + 2) * 2.0**-24)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Excluded (row, item) pairs of one block of rows, sorted by item."""

    rows: Tensor
    item_ids: Tensor

    def within(self, begin: int, stop: int, width: int) -> Tensor:
        """Return flat positions in a [b, width] block of the scores of items begin .. stop - 1."""
        bounds = torch.tensor([begin, stop], device=self.item_ids.device)
        first, last = torch.searchsorted(self.item_ids, bounds).tolist()
        return self.rows[first:last] * width + self.item_ids[first:last] - begin

    def subset(self, rows: Tensor, num_rows: int) -> _Pairs:
        """Keep ``rows`` (ascending), renumbered from 0."""
        number = torch.full((num_rows,), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        mask = number[self.rows] >= 0
        return _Pairs(number[self.rows[mask]], self.item_ids[mask])


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
