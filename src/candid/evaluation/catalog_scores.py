"""Scores of a batch of queries over the ranked items, from vectors or from rows of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints, Queries
from candid.distributed import Group, current_group
from candid.errors import ArtifactError, ConfigError
from candid.evaluation.likelihood import target_nll
from candid.evaluation.metrics import Bools
from candid.evaluation.shard_scores import ShardedItems, ShardScores
from candid.index import Exclusions, RunningLogSumExp, SearchResult
from candid.inference import (
    ItemSubset,
    ScoringModel,
    StageProgress,
    TwoTowerModel,
    encode_catalog,
    is_sharded,
    scores_catalog,
)

BLOCK_ITEMS = 4096
"""Columns of a row of scores that are read at once."""


class CatalogScores(Protocol):
    """The scores of b queries for the n ranked items, ready to be searched.

    Attributes:
        num_items: n.
        device: of the scores.
    """

    num_items: int
    device: torch.device

    def search(
        self, k: int, exclude: Exclusions | None, *, with_log_partition: bool
    ) -> tuple[SearchResult, Tensor | None]:
        """Find the k ranked items of largest score for each query.

        Args:
            k: results per query, at most n.
            exclude: items to leave out, ranked or not; None: none.
            with_log_partition: also compute log Σ_d exp(score) over all ranked items.

        Returns:
            ids and scores [b, k], best first, -1 and -inf after the end of a shorter row; and
            [b] float64, or None.
        """
        ...

    def equal_scores(
        self, rows: Ints, scores: Tensor, exclude: Exclusions | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Find all ranked items that have a given score.

        Args:
            rows: [r] int64, queries of the batch.
            scores: [r] float32, such as a score that ``search`` returned for each.
            exclude: items that never count, by row of ``rows``; None: none.

        Yields:
            block by block: ids [m] int64, ascending, and [r, m] bool.
        """
        ...

    def target_nll(self, target_rows: Tensor, target_ids: Tensor, log_z: Tensor) -> Tensor:
        """Compute the negative log-likelihood of targets: [M] float64, in nats.

        Args:
            target_rows: [M] int64, the query of each target.
            target_ids: [M] int64, ranked items.
            log_z: [b] float64, the log partition over all ranked items.
        """
        ...


class VectorScores:
    """Scores that are dot products of query and item vectors.

    Args:
        items: the ranked items.
        query: [b, D] float32.
    """

    def __init__(self, items: ItemSubset, query: Tensor) -> None:
        self.num_items, self.device = items.num_items, query.device
        self._items, self._query = items, query

    def search(
        self, k: int, exclude: Exclusions | None, *, with_log_partition: bool
    ) -> tuple[SearchResult, Tensor | None]:
        """Search in blocks; the scores of a batch are never held at once."""
        if with_log_partition:
            return self._items.search_with_log_partition(self._query, k, exclude)
        return self._items.search(self._query, k, exclude), None

    def equal_scores(
        self, rows: Ints, scores: Tensor, exclude: Exclusions | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Score the catalog again for these rows, block by block."""
        query = self._query[torch.from_numpy(rows).to(self.device)]
        return self._items.equal_scores(query, scores, exclude)

    def target_nll(self, target_rows: Tensor, target_ids: Tensor, log_z: Tensor) -> Tensor:
        """Compute the scores of the targets in float64."""
        positions = self._items.positions_of(target_ids)
        vectors = self._items.item_vectors
        return target_nll(self._query, vectors, target_rows, positions, log_z)


class RowScores:
    """Scores that a model returned as rows over the catalog.

    Args:
        scores: [b, V] float32.
        ranked_ids: [n] int64 ascending, the ranked items; None: all.

    Raises:
        ArtifactError: a score is not finite.
    """

    def __init__(self, scores: Tensor, ranked_ids: Tensor | None) -> None:
        # One pass: the minimum and the maximum are NaN if any score is.
        if not bool(torch.stack(torch.aminmax(scores)).isfinite().all()):
            raise ArtifactError(
                "the scores of a model contain NaN or infinite values; fix its score_catalog"
            )
        self._scores = scores if ranked_ids is None else scores[:, ranked_ids]
        self._ids = ranked_ids
        self._num_catalog = scores.shape[1]
        self.num_items, self.device = self._scores.shape[1], scores.device

    def search(
        self, k: int, exclude: Exclusions | None, *, with_log_partition: bool
    ) -> tuple[SearchResult, Tensor | None]:
        """Select from the rows of scores."""
        scores = self._scores
        if exclude is not None:
            scores = scores.clone(memory_format=torch.contiguous_format)
            scores[self._excluded(exclude)] = -torch.inf
        values, positions = scores.topk(k, dim=1)
        item_ids = positions if self._ids is None else self._ids[positions]
        item_ids = torch.where(values == -torch.inf, -1, item_ids)
        return SearchResult(item_ids, values), self._log_partition() if with_log_partition else None

    def equal_scores(
        self, rows: Ints, scores: Tensor, exclude: Exclusions | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Compare the rows of scores, block by block."""
        is_equal = self._scores[torch.from_numpy(rows).to(self.device)] == scores[:, None]
        if exclude is not None:
            is_equal[self._excluded(exclude)] = False
        for begin in range(0, self.num_items, BLOCK_ITEMS):
            stop = min(begin + BLOCK_ITEMS, self.num_items)
            positions = torch.arange(begin, stop, device=self.device)
            yield positions if self._ids is None else self._ids[positions], is_equal[:, begin:stop]

    def target_nll(self, target_rows: Tensor, target_ids: Tensor, log_z: Tensor) -> Tensor:
        """Read the scores of the targets."""
        columns = target_ids
        if self._ids is not None:
            columns = torch.searchsorted(self._ids, target_ids)
        return log_z[target_rows] - self._scores[target_rows, columns].double()

    def _log_partition(self) -> Tensor:
        scores = self._scores
        sums = RunningLogSumExp(len(scores), num_columns=self.num_items, device=self.device)
        for begin in range(0, self.num_items, BLOCK_ITEMS):
            sums.add(scores[:, begin : begin + BLOCK_ITEMS].contiguous())
        return sums.result()

    def _excluded(self, exclude: Exclusions) -> tuple[Tensor, Tensor]:
        """Return rows and columns of the excluded items that are ranked."""
        lengths = exclude.offsets.diff()
        rows = torch.arange(len(lengths), device=self.device).repeat_interleave(lengths)
        if self._ids is None:
            return rows, exclude.item_ids
        columns = torch.full((self._num_catalog,), -1, device=self.device)
        columns[self._ids] = torch.arange(self.num_items, device=self.device)
        columns = columns[exclude.item_ids]
        return rows[columns >= 0], columns[columns >= 0]


def catalog_scorer(
    model: TwoTowerModel | ScoringModel,
    is_ranked: Bools,
    progress: StageProgress | None = None,
    group: Group | None = None,
) -> tuple[Callable[[Queries], CatalogScores], torch.device, Tensor | None]:
    """Return the function that scores a batch of queries, and the device of its queries.

    The third part are the item vectors [V, D] float32, None for a model without vectors, and for
    one whose items are on several processes.

    A model that has ``score_catalog`` is asked for rows of scores, [b, V] for one batch at a
    time. The items of any other model are encoded once, here.

    Args:
        model: the model, in inference mode.
        is_ranked: [V] bool, items of the dataset that are ranked.
        progress: called with (stage, done, total) while items are encoded.
        group: processes that hold the items of a sharded model; None: this process alone.

    Raises:
        ConfigError: the model has another number of items than the dataset.
        ArtifactError: vectors or scores are not finite.
    """
    if (
        not scores_catalog(model)
        and is_sharded(model)
        and (own_items := model.own_items) is not None
    ):
        own = model.encode_own_items().float()
        shards = ShardedItems(
            own, own_items, is_ranked, current_group() if group is None else group
        )

        def from_shards(queries: Queries) -> CatalogScores:
            return ShardScores(shards, model.encode_queries(queries).float())

        return from_shards, own.device, None

    if not scores_catalog(model):
        item_vectors = encode_catalog(model, progress).float()
        _check_size(len(item_vectors), len(is_ranked))
        items = ItemSubset(item_vectors, is_ranked)

        def from_vectors(queries: Queries) -> CatalogScores:
            return VectorScores(items, model.encode_queries(queries).float())

        return from_vectors, item_vectors.device, item_vectors

    ids = None if is_ranked.all() else torch.from_numpy(np.flatnonzero(is_ranked))

    def from_rows(queries: Queries) -> CatalogScores:
        scores = model.score_catalog(queries)
        _check_size(scores.shape[1], len(is_ranked))
        return RowScores(scores.float(), None if ids is None else ids.to(scores.device))

    return from_rows, torch.device("cpu"), None


def _check_size(num_items: int, num_of_dataset: int) -> None:
    if num_items != num_of_dataset:
        raise ConfigError(
            f"the model has {num_items} items and the dataset has {num_of_dataset}: evaluate it on "
            "the dataset it was trained on"
        )
