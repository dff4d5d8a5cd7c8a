"""Search over rows of scores: the interface of an index for models without vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.batches import Queries
from candid.errors import ArtifactError, ConfigError
from candid.index import Exclusions, SearchResult
from candid.inference.scoring_model import ScoringModel

Bools = npt.NDArray[np.bool_]
MAX_SCORES = 2**23
"""Largest number of scores of a batch, 32 MiB: larger arrays cost a page fault for each page."""


class ScoreRows:
    """Searches in which the query is the row of scores that a model gave to all V items.

    Args:
        num_catalog: V.
        is_included: [V] bool, items that results may contain, at least one; None: all.

    Attributes:
        num_items: how many items are included.
    """

    def __init__(self, num_catalog: int, is_included: Bools | None = None) -> None:
        self.num_items = num_catalog
        self._excluded: Tensor | None = None
        if is_included is not None and not is_included.all():
            self._excluded = torch.from_numpy(np.flatnonzero(~is_included))
            self.num_items -= len(self._excluded)

    def search(self, query: Tensor, k: int, exclude: Exclusions | None = None) -> SearchResult:
        """Find the k included items of largest score.

        Args:
            query: [B, V] float32, scores of all items.
            k: results per query, at most the number of included items.
            exclude: items to leave out, included or not; None: none.

        Returns:
            ids and scores [B, k], best first; -1 and -inf after the end of a shorter row.
        """
        scores = query
        if exclude is not None or self._excluded is not None:
            scores = query.clone(memory_format=torch.contiguous_format)
        if self._excluded is not None:
            scores[:, self._excluded.to(query.device)] = -torch.inf
        if exclude is not None:
            rows = torch.arange(len(query), device=query.device)
            rows = rows.repeat_interleave(exclude.offsets.diff())
            scores[rows, exclude.item_ids] = -torch.inf
        values, item_ids = scores.topk(k, dim=1)
        return SearchResult(torch.where(values == -torch.inf, -1, item_ids), values)


def score_rows(model: ScoringModel, queries: Queries, num_items: int) -> Tensor:
    """Score all V items for B queries: [B, V] float32.

    Args:
        model: scores the catalog.
        queries: B queries on the CPU.
        num_items: V, of the dataset.

    Raises:
        ConfigError: the model has another number of items.
        ArtifactError: a score is not finite.
    """
    scores = model.score_catalog(queries).float()
    if scores.shape[1] != num_items:
        raise ConfigError(
            f"the model has {scores.shape[1]} items and the dataset has {num_items}: use it with "
            "the dataset it was fitted to"
        )
    # One pass: the minimum and the maximum are NaN if any score is.
    if scores.numel() and not bool(torch.stack(torch.aminmax(scores)).isfinite().all()):
        raise ArtifactError(
            "the scores of a model contain NaN or infinite values; fix its score_catalog"
        )
    return scores


def score_batch_size(num_items: int, largest: int) -> int:
    """Return the number of queries to score at once: at most ``MAX_SCORES`` scores."""
    return max(1, min(largest, MAX_SCORES // num_items))
